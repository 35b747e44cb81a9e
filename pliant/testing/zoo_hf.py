"""Hugging Face families that read text: encoders, decoders, mixtures of experts, state spaces.

Tiny configurations with random weights: hidden size 24, four heads, two layers, feed-forward 32 where nothing else is
said. The groups are those of the published architectures.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.testing.entry import Draw, Entry, Groups, Make, entry, named, tokens

VOCABULARY = 40
LAYERS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
_TEXT = {"vocab_size": VOCABULARY, **LAYERS, "max_position_embeddings": 32}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
_CAUSAL = {**_TEXT, **_ENDS}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2}
_EXPERTS = {**_GROUPED, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
CLASSIFIER: Groups = {"heads": [4, 4], "width": [24, 24, 32, 32], "depth": [4]}
"""Stream, the dense layer of the classification head, and in both layers heads and hidden neurons."""
DECODER: Groups = {"heads": [4, 4], "width": [24, 32, 32], "depth": [4]}
"""Stream, and in both layers heads and hidden neurons."""
GROUPED: Groups = {"heads": [2, 2], "width": [24, 32, 32], "depth": [4]}
"""As `DECODER`; a head is a key-value head with its two query heads."""

_MIXTURE: Groups = {**GROUPED, "experts": [4, 4]}


def model(family: str, head: str, options: Mapping[str, Any]) -> Make:
    """A transformers model with random weights, about 1/sqrt(24) wide; it gives out no key-value cache.

    The usual 0.02 is for large networks: tiny ones would be so near to zero that nothing in them could be told apart.
    """

    def build() -> nn.Module:
        import transformers

        config = transformers.AutoConfig.for_model(family, **options)
        if hasattr(config, "use_cache"):
            config.use_cache = False
        if hasattr(config, "initializer_range") and "initializer_range" not in options:
            config.initializer_range = 0.2
        net: nn.Module = getattr(transformers, head)(config)
        return net

    return build


def ids(length: int = 10) -> Draw:
    """`input_ids` alone; none of them is a special token."""
    return named(input_ids=words(length))


def words(length: int) -> Draw:
    """Tokens that are not special: int64 [2, length], from 5 on."""
    draw = tokens(length, VOCABULARY - 5)

    def shifted(generator: Any) -> Tensor:
        drawn = draw(generator)
        assert isinstance(drawn, Tensor)
        return drawn + 5

    return shifted


def hf(family: str, head: str, *, options: Mapping[str, Any], inputs: Draw | None = None, tags: str = "",
       groups: Groups | None = None, name: str = "") -> Entry:  # fmt: skip
    """A row: a family by its `model_type`, the class of the model, the options of its configuration."""
    build = model(family, head, options)
    return entry(name or f"hf-{family.replace('_', '-')}", build, inputs or ids(), f"hf {tags}",
                 groups=groups, family=family)  # fmt: skip


def _encoder(family: str, head: str, *, groups: Groups | None = CLASSIFIER, inputs: Draw | None = None,
             **options: Any) -> Entry:  # fmt: skip
    """A sequence classifier."""
    return hf(family, f"{head}ForSequenceClassification", options={**_TEXT, **options}, inputs=inputs, groups=groups,
              tags="attention layernorm tokens depth")  # fmt: skip


def _decoder(family: str, head: str, *, groups: Groups | None = GROUPED, base: Mapping[str, Any] = _GROUPED,
             tags: str = "rmsnorm gqa", **options: Any) -> Entry:  # fmt: skip
    """A language model."""
    return hf(family, f"{head}ForCausalLM", options={**base, **options}, groups=groups,
              tags=f"attention tokens depth {tags}")  # fmt: skip


def _boxes(generator: Any) -> Tensor:
    """Word boxes: left, upper, right, lower, with left < right and upper < lower. Int64 [2, 10, 4] below 32."""
    corners = torch.randint(16, (2, 10, 2), generator=generator)
    return torch.cat([corners, corners + torch.randint(1, 16, (2, 10, 2), generator=generator)], dim=2)


_DOCUMENT = named(input_ids=words(10), bbox=_boxes)
_N_LAYERS = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 32, "n_positions": 32}

ENTRIES: list[Entry] = [
    # -- those on which the fast tests run every law --
    hf("gpt2", "GPT2LMHeadModel", name="gpt2", tags="core attention layernorm tokens tied depth", groups=DECODER,
       options={**_N_LAYERS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **_ENDS}),
    hf("llama", "LlamaForCausalLM", name="llama", tags="core attention rmsnorm gqa tokens depth", groups=GROUPED,
       options=_GROUPED),
    # the stream is the output, so that it stays; nothing is behind the pooler
    hf("bert", "BertModel", name="bert", tags="core attention layernorm tokens depth",
       options={**_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
       groups={"heads": [4, 4], "width": [32, 32], "depth": [4]}),
    # -- encoders --
    _encoder("roberta", "Roberta"),
    hf("distilbert", "DistilBertForSequenceClassification", tags="attention layernorm tokens depth", groups=CLASSIFIER,
       options={"vocab_size": VOCABULARY, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 32,
                "max_position_embeddings": 32}),
    # one layer, used twice; each use can be left out. Tokens of 16 are projected to the stream
    hf("albert", "AlbertForSequenceClassification", tags="attention layernorm tokens shared",
       options={**_TEXT, "embedding_size": 16}, groups={"heads": [4], "width": [16, 24, 24, 32], "depth": [4]}),
    _encoder("electra", "Electra", embedding_size=16,
             groups={"heads": [4, 4], "width": [16, 24, 24, 32, 32], "depth": [4]}),
    # scores of contents and of relative positions; the table of positions goes through the same projections, so that
    # its columns are the stream's
    _encoder("deberta-v2", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
             share_att_key=True, norm_rel_ebd="layer_norm"),
    # one bias of positions for all layers, so that their heads are one group
    _encoder("mpnet", "MPNet", groups={"heads": [4], "width": [24, 24, 32, 32], "depth": [4]}),
    # the Fourier transform over the stream keeps the stream whole; embeddings before their projection, hidden neurons,
    # pooler; only the neurons' branches have parameters
    hf("fnet", "FNetForSequenceClassification", tags="layernorm tokens fourier depth",
       options={key: value for key, value in _TEXT.items() if key != "num_attention_heads"},
       groups={"width": [24, 24, 32, 32], "depth": [2]}),
    _encoder("modernbert", "ModernBert", bos_token_id=0, eos_token_id=1, pad_token_id=0, local_attention=8,
             cls_token_id=0, sep_token_id=1),
    _encoder("nomic_bert", "NomicBert"),
    _encoder("roformer", "RoFormer"),
    _encoder("esm", "Esm", position_embedding_type="rotary", pad_token_id=1, mask_token_id=2),
    _encoder("layoutlm", "LayoutLM", inputs=_DOCUMENT, max_2d_position_embeddings=32),
    _encoder("mobilebert", "MobileBert", groups=None, embedding_size=16, true_hidden_size=16, intra_bottleneck_size=16),
    # half of the heads attend, the other half convolve with kernels made from the tokens
    _encoder("convbert", "ConvBert", embedding_size=24, conv_kernel_size=3,
             groups={"heads": [2, 2, 2, 2], "width": [24, 24, 32, 32], "depth": [4]}),
    # weights are kept as [stream, heads, head size], so that head sizes are axes too: one of queries and keys and one
    # of values in each layer
    hf("xlnet", "XLNetForSequenceClassification", tags="attention layernorm tokens depth",
       options={"vocab_size": VOCABULARY, "d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 32,
                "use_mems_eval": False},
       groups={"heads": [4, 4], "width": [6, 6, 6, 6, 24, 24, 32, 32], "depth": [4]}),
    hf("perceiver", "PerceiverForSequenceClassification", inputs=named(inputs=words(10)), tags="attention layernorm",
       options={"vocab_size": VOCABULARY, "num_latents": 8, "d_latents": 24, "d_model": 24, "num_blocks": 1,
                "num_self_attends_per_block": 2, "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
                "max_position_embeddings": 32}),
    # -- decoders --
    _decoder("qwen3", "Qwen3", head_dim=8),
    _decoder("gemma3_text", "Gemma3", head_dim=8, sliding_window=8),
    _decoder("olmo2", "Olmo2"),
    _decoder("glm", "Glm", head_dim=8),
    _decoder("phi3", "Phi3", tags="rmsnorm gqa fused"),
    _decoder("cohere2", "Cohere2", sliding_window=8, head_dim=6, tags="layernorm gqa"),
    _decoder("opt", "OPT", base={}, groups=DECODER, tags="layernorm tied", vocab_size=VOCABULARY, hidden_size=24,
             num_hidden_layers=2, num_attention_heads=4, ffn_dim=32, max_position_embeddings=32, word_embed_proj_dim=24,
             **_ENDS),
    _decoder("gpt_neox", "GPTNeoX", base=_CAUSAL, groups=DECODER, tags="layernorm"),
    _decoder("gptj", "GPTJ", base=_N_LAYERS, groups={"heads": [4, 4], "width": [32, 32, 32], "depth": [4]},
             tags="layernorm", n_embd=32, rotary_dim=4, **_ENDS),
    _decoder("phi", "Phi", base=_CAUSAL, groups={"heads": [4, 4], "width": [32, 32, 32], "depth": [4]},
             tags="layernorm", hidden_size=32),
    # every head has a slope of its own, made by the code, so that heads stay
    _decoder("bloom", "Bloom", base={}, groups={"width": [24, 96, 96], "depth": [4]}, tags="layernorm alibi tied",
             vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=4, **_ENDS),
    # four query heads, one key-value head
    _decoder("falcon", "Falcon", base={}, groups=DECODER, tags="layernorm mqa tied", vocab_size=VOCABULARY,
             hidden_size=24, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=32, **_ENDS),
    _decoder("xglm", "XGLM", base={}, groups=DECODER, tags="layernorm tied", vocab_size=VOCABULARY, d_model=24,
             num_layers=2, attention_heads=4, ffn_dim=32, max_position_embeddings=32, **_ENDS),
    _decoder("deepseek_v3", "DeepseekV3", base=_CAUSAL, groups=None, tags="rmsnorm latent experts",
             num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4, n_group=2, topk_group=1,
             num_experts_per_tok=2, experts_implementation="batched_mm", kv_lora_rank=8, q_lora_rank=12,
             qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1),
    _decoder("llama4_text", "Llama4", groups=None, tags="rmsnorm gqa experts", head_dim=6, num_local_experts=2,
             intermediate_size_mlp=32, interleave_moe_layer_step=1, attention_chunk_size=8),
    # -- mixtures of experts: batched products, but for one family with grouped ones, as transformers has it --
    # experts of both layers, each with the same hidden neurons, which are one group
    _decoder("mixtral", "Mixtral", base=_EXPERTS, groups=_MIXTURE, tags="rmsnorm gqa experts", num_local_experts=4,
             experts_implementation="grouped_mm"),
    _decoder("olmoe", "Olmoe", base=_EXPERTS, groups=_MIXTURE, tags="rmsnorm gqa experts", num_experts=4),
    _decoder("gpt_oss", "GptOss", base=_EXPERTS, groups=_MIXTURE, tags="rmsnorm gqa experts", num_local_experts=4,
             head_dim=8, sliding_window=8),
    # and an expert that all tokens see
    _decoder("qwen2_moe", "Qwen2Moe", base=_EXPERTS, tags="rmsnorm gqa experts", num_experts=4,
             moe_intermediate_size=16, shared_expert_intermediate_size=32,
             groups={"heads": [2, 2], "width": [16, 16, 24, 32, 32], "experts": [4, 4], "depth": [4]}),
    # -- state spaces and other recurrences --
    # stream, and in both layers the inner width, the rank of the time steps and the state
    _decoder("mamba", "Mamba", base={}, tags="ssm rmsnorm recurrent tied", vocab_size=VOCABULARY, hidden_size=16,
             num_hidden_layers=2, state_size=4, time_step_rank=4,
             groups={"width": [4, 4, 4, 4, 16, 32, 32], "depth": [2]}),
    _decoder("falcon_mamba", "FalconMamba", base={}, tags="ssm rmsnorm recurrent tied", vocab_size=VOCABULARY,
             hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=4,
             groups={"width": [4, 4, 4, 4, 16, 32, 32], "depth": [2]}),
    _decoder("mamba2", "Mamba2", base={}, groups=None, tags="ssm rmsnorm", vocab_size=VOCABULARY, hidden_size=16,
             num_hidden_layers=2, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=8, **_ENDS),
    hf("rwkv", "RwkvForCausalLM", tags="layernorm recurrent tokens",
       options={"vocab_size": VOCABULARY, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2,
                "intermediate_size": 32, "context_length": 32, "rescale_every": 0},
       groups={"width": [16, 16, 16, 32, 32], "depth": [4]}),
    # a gated convolution (inner width 24) and an attention; hidden neurons 2/3 of 32, rounded up to 24
    _decoder("lfm2", "Lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8, tags="rmsnorm conv gqa",
             groups={"heads": [2], "width": [24, 24, 24, 24], "depth": [4]}),
    _decoder("bamba", "Bamba", groups=None, tags="ssm rmsnorm gqa", mamba_n_heads=4, mamba_d_head=12, mamba_d_state=4,
             mamba_chunk_size=8, attn_layer_indices=[1]),
]  # fmt: skip
