"""The zoo: small networks on which every law is run. Between them they tie axes in every way the graph must know."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pliant import nets
from pliant.core import Inputs, seeded
from pliant.testing import zoo_nets


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Args:
        name: what test cases call it.
        build: makes the network under the global random state.
        inputs: makes the example input from a generator.
        tags: what is in it (conv, batchnorm, groupnorm, layernorm, attention, rnn, cat, tokens, tied, hf, ...).
        groups: the groups of tied axes that must be found, None where not stated.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Inputs]
    tags: frozenset[str]
    groups: dict[str, Any] | None = field(default=None, compare=False)

    def make(self) -> nn.Module:
        """The network in train mode, always with the same weights; the global random state is left alone.

        Constant initial values (biases, norm scales, running statistics) are replaced by random ones: with all entries
        equal, no test would see which of them is used where.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.build()
        _stir(net, seeded(0, "zoo", self.name))
        return net.train()

    def example(self) -> Inputs:
        """The example input, batch of 2, always the same."""
        return self.inputs(seeded(0, "zoo example", self.name))


def _stir(net: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
                continue
            if name.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=generator) - 0.5)
            else:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)


def _floats(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(2, *shape, generator=generator)


def _tokens(length: int, vocabulary: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(vocabulary, (2, length), generator=generator)


def _input_ids(length: int, vocabulary: int) -> Callable[[torch.Generator], Inputs]:
    tokens = _tokens(length, vocabulary)
    return lambda generator: {"input_ids": tokens(generator)}


def _hf(family: str, kind: str, **options: Any) -> Callable[[], nn.Module]:
    """A tiny transformers model with random weights, without dropout and cache."""

    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{family}Config")(use_cache=False, attn_implementation="sdpa", **options)
        net: nn.Module = getattr(transformers, f"{family}{kind}")(config)
        return net

    return build


_Row = tuple[str, Callable[[], nn.Module], Callable[[torch.Generator], Inputs], str]

_ROWS: list[_Row] = [
    ("mlp", lambda: nets.mlp((12,), 5, hidden=(16, 12)), _floats(12), "linear"),
    (
        "resnet",
        lambda: nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8),
        _floats(3, 8, 8),
        "conv batchnorm inplace depth",
    ),
    (
        "dwsep",
        lambda: nets.dwsep((3, 8, 8), 5, stem=8, channels=(16, 24), strides=(1, 2)),
        _floats(3, 8, 8),
        "conv depthwise batchnorm inplace",
    ),
    (
        "vit",
        lambda: nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4),
        _floats(3, 8, 8),
        "conv attention layernorm cat depth",
    ),
    (
        "gpt",
        lambda: nets.gpt((10,), 20, dim=16, depth=2, heads=4),
        _tokens(10, 20),
        "attention layernorm tokens tied depth",
    ),
    ("lstm", lambda: nets.lstm((7, 6), 5, hidden=10), _floats(7, 6), "rnn"),
    ("mbnet", zoo_nets.MobileNet, _floats(3, 8, 8), "conv depthwise batchnorm inplace squeeze depth"),
    ("resnext", zoo_nets.ResNeXt, _floats(3, 8, 8), "conv grouped groupnorm depth"),
    ("densenet", zoo_nets.DenseNet, _floats(3, 8, 8), "conv batchnorm cat"),
    ("unet", zoo_nets.UNet, _floats(3, 8, 8), "conv transposed upsample cat inplace dense"),
    ("bilstm", zoo_nets.BiLSTM, _floats(7, 6), "rnn bidirectional"),
    ("gru", zoo_nets.GRU, _tokens(7, 20), "rnn tokens"),
    ("encoder", zoo_nets.Encoder, _floats(7, 6), "attention layernorm depth"),
    ("shared", zoo_nets.Shared, _tokens(7, 20), "shared tied tokens weightnorm einsum glu"),
    ("convnext", zoo_nets.ConvNeXt, _floats(3, 8, 8), "conv depthwise layernorm depth"),
    ("mixer", zoo_nets.Mixer, _floats(3, 8, 8), "conv layernorm depth"),
    ("shufflenet", zoo_nets.ShuffleNet, _floats(3, 8, 8), "conv depthwise batchnorm cat shuffle inplace"),
    ("tcn", zoo_nets.TCN, _floats(4, 9), "conv gated depth"),
]
_GPT2 = _hf(
    "GPT2",
    "LMHeadModel",
    **{"vocab_size": 40, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 32},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 1},
)
_COMMON = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
_COMMON |= {"num_attention_heads": 4, "max_position_embeddings": 16}
_LLAMA = _hf("Llama", "ForCausalLM", num_key_value_heads=2, bos_token_id=0, eos_token_id=1, **_COMMON)
_BERT = _hf("Bert", "Model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_COMMON)

_HF: list[_Row] = [
    ("gpt2", _GPT2, _input_ids(10, 40), "hf attention layernorm tokens tied depth"),
    ("llama", _LLAMA, _input_ids(10, 40), "hf attention rmsnorm gqa tokens depth"),
    ("bert", _BERT, _input_ids(10, 40), "hf attention layernorm tokens depth"),
]


def _entries() -> dict[str, Entry]:
    rows = _ROWS + (_HF if importlib.util.find_spec("transformers") is not None else [])
    return {name: Entry(name, build, inputs, frozenset(tags.split())) for name, build, inputs, tags in rows}


ZOO: dict[str, Entry] = _entries()
"""Name -> entry; those tagged hf are there where transformers is installed."""
