"""Hugging Face families that read images, sound, pairs of things and time series.

Tiny configurations as in `zoo_hf`; the groups are those of the published architectures.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pliant.testing.entry import Draw, Entry, Groups, constant, floats, named, tokens
from pliant.testing.zoo_hf import DECODER, LAYERS, VOCABULARY, hf, words

_PATCHES = {**LAYERS, "image_size": 32, "patch_size": 8}
_SMALL = named(pixel_values=floats(3, 32, 32))
_LARGE = named(pixel_values=floats(3, 64, 64))
_PAIR = named(input_ids=words(10), decoder_input_ids=words(6))
_T5 = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4,
       "decoder_start_token_id": 0}  # fmt: skip
_SIDES = {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
_TRANSLATOR = {"vocab_size": VOCABULARY, **_SIDES, "max_position_embeddings": 32, "pad_token_id": 1,
               "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
_BOTH: Groups = {"heads": [4] * 6, "width": [32] * 4, "depth": [10]}
"""Two encoder layers, two decoder layers with two attentions each; the streams are an output, or tied to one."""
_WAVES = {**LAYERS, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
          "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 8, "vocab_size": VOCABULARY, "layerdrop": 0.0,
          "mask_time_prob": 0.0, "classifier_proj_size": 16}  # fmt: skip
_HEARD: Groups = {"heads": [4, 4], "width": [8, 16, 16, 16, 32, 32], "depth": [5]}
"""Two convolutions, the stream in the eight groups of its positional convolution, the classifier's projection."""
_RESNET = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
_DETECTOR = {**_SIDES, "use_timm_backbone": False, "use_pretrained_backbone": False, "num_queries": 6, "num_labels": 5}
_CLIP = {
    "text_config": {"vocab_size": VOCABULARY, **LAYERS, "max_position_embeddings": 16, "eos_token_id": 2},
    "vision_config": _PATCHES,
}
_PYRAMID = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4], "hidden_sizes": [8, 16, 24, 32]}
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "input_size": 1,
           "num_time_features": 1, **_SIDES, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}  # fmt: skip


def _image(family: str, head: str, *, options: Mapping[str, Any], inputs: Draw = _SMALL, groups: Groups | None = None,
           tags: str = "") -> Entry:  # fmt: skip
    """An image classifier."""
    return hf(family, f"{head}ForImageClassification", options=options, inputs=inputs, groups=groups,
              tags=f"conv depth {tags}")  # fmt: skip


def _ones(*shape: int) -> Draw:
    return constant(torch.ones(2, *shape))


def _floats_and(draw: Draw, name: str) -> Draw:
    """An image together with another input."""
    return named(pixel_values=floats(3, 32, 32), **{name: draw})


def _noise(generator: torch.Generator) -> Tensor:
    """Which of 16 patches are masked: random numbers in [0, 1)."""
    return torch.rand(2, 16, generator=generator)


ENTRIES: list[Entry] = [
    # -- encoder and decoder --
    # relative positions are biased once for all layers of a side, cross attention begins with zeros for all layers
    hf("t5", "T5ForConditionalGeneration", options=_T5, inputs=_PAIR, tags="attention rmsnorm tokens tied depth",
       groups={"heads": [4, 4, 4], "width": [32] * 4, "depth": [10]}),
    hf("t5", "T5EncoderModel", name="hf-t5-encoder", options=_T5, tags="attention rmsnorm tokens depth",
       groups={"heads": [4], "width": [32, 32], "depth": [4]}),
    hf("bart", "BartForConditionalGeneration", options=_TRANSLATOR, inputs=_PAIR, groups=_BOTH,
       tags="attention layernorm tokens tied depth"),
    hf("marian", "MarianMTModel", options=_TRANSLATOR, inputs=_PAIR, groups=_BOTH,
       tags="attention layernorm tokens tied depth"),
    # the encoder's stream is an output, the decoder's bends; first convolution
    hf("whisper", "WhisperForConditionalGeneration", tags="conv attention layernorm tokens tied depth",
       options={**{key: value for key, value in _TRANSLATOR.items() if key != "max_position_embeddings"},
                "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
       inputs=named(input_features=floats(8, 32), decoder_input_ids=words(6)),
       groups={"heads": [4] * 6, "width": [24, 24, 32, 32, 32, 32], "depth": [10]}),
    # two convolutions with gated linear units, of 16 halved and of the stream doubled
    hf("speech_to_text", "Speech2TextForConditionalGeneration", tags="conv glu attention layernorm tokens depth",
       options={**_TRANSLATOR, "max_source_positions": 32, "max_target_positions": 32, "conv_channels": 16,
                "num_conv_layers": 2, "conv_kernel_sizes": [3, 3], "input_feat_per_channel": 8, "input_channels": 1,
                "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
       inputs=named(input_features=floats(16, 8), decoder_input_ids=words(6)),
       groups={"heads": [4] * 6, "width": [8, 24, 32, 32, 32, 32], "depth": [10]}),
    # three convolutions (the last makes the encoder's stream, an output), gated neurons in the decoder
    hf("moonshine", "MoonshineForConditionalGeneration", tags="conv attention layernorm groupnorm tokens depth",
       options={"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "encoder_num_hidden_layers": 2,
                "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
                "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
                "decoder_start_token_id": 0},
       inputs=named(input_values=floats(1600), decoder_input_ids=words(6)),
       groups={"heads": [4] * 6, "width": [32] * 6 + [64], "depth": [10]}),
    # -- sound --
    hf("wav2vec2", "Wav2Vec2ForSequenceClassification", options=_WAVES, inputs=named(input_values=floats(400)),
       tags="conv grouped attention groupnorm layernorm weightnorm depth", groups=_HEARD),
    hf("hubert", "HubertForSequenceClassification", options=_WAVES, inputs=named(input_values=floats(400)),
       tags="conv grouped attention groupnorm layernorm weightnorm depth", groups=_HEARD),
    # positions are biased once for all layers, so that their heads are one group; the gate of that bias sums four
    # numbers twice in every layer
    hf("wavlm", "WavLMForSequenceClassification", inputs=named(input_values=floats(400)),
       options={**_WAVES, "num_buckets": 8, "max_bucket_distance": 16},
       tags="conv grouped attention groupnorm layernorm weightnorm depth"),
    hf("wav2vec2-conformer", "Wav2Vec2ConformerForSequenceClassification", inputs=named(input_values=floats(400)),
       options={**_WAVES, "conv_depthwise_kernel_size": 5, "position_embeddings_type": "relative"},
       tags="conv depthwise attention batchnorm layernorm glu depth"),
    hf("audio-spectrogram-transformer", "ASTForAudioClassification", name="hf-ast",
       options={**LAYERS, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16,
                "num_mel_bins": 8},
       inputs=named(input_values=floats(16, 8)), tags="conv attention layernorm depth", groups=DECODER),
    # -- images, by attention --
    _image("vit", "ViT", options=_PATCHES, groups=DECODER, tags="attention layernorm"),
    _image("deit", "DeiT", options=_PATCHES, groups=DECODER, tags="attention layernorm"),
    _image("beit", "Beit", groups=DECODER, tags="attention layernorm layerscale",
           options={**_PATCHES, "use_relative_position_bias": True, "layer_scale_init_value": 0.1}),
    _image("dinov2", "Dinov2", groups={"heads": [4, 4], "width": [24, 48, 48], "depth": [4]},
           options={**_PATCHES, "mlp_ratio": 2}, tags="attention layernorm layerscale"),
    # the stream is the output
    hf("dinov3_vit", "DINOv3ViTModel", options={**_PATCHES, "hidden_size": 32, "num_register_tokens": 2},
       inputs=_SMALL, tags="conv attention layernorm layerscale depth",
       groups={"heads": [4, 4], "width": [32, 32], "depth": [4]}),
    # two stages of two blocks; four patches merge into one of twice the width; neurons of four times the width
    _image("swin", "Swin", tags="attention layernorm windows",
           options={"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                    "window_size": 4},
           groups={"heads": [2, 2, 4, 4], "width": [16, 32, 64, 64, 128, 128], "depth": [8]}),
    _image("swinv2", "Swinv2", tags="attention layernorm windows",
           options={"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                    "window_size": 4}),
    # streams; keys and values are reduced by a convolution but in the last stage; the first stage has one head, so that
    # its sizes of keys and of values bend; neurons twice the stream
    _image("pvt_v2", "PvtV2", inputs=_LARGE, options={**_PYRAMID, "image_size": 64, "mlp_ratios": [2, 2, 2, 2]},
           tags="attention layernorm", groups={
               "heads": [2, 4, 4], "width": [8, 8, 8, 8, 16, 16, 16, 24, 24, 32, 32, 48, 64], "depth": [8]}),
    # two stages; the second begins with a wider attention, so that it has no shortcut around it
    _image("hiera", "Hiera", tags="attention layernorm pooling", groups={
               "heads": [2, 4], "width": [16, 32, 64, 128], "depth": [3]},
           options={"embed_dim": 16, "image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [4, 4],
                    "patch_padding": [1, 1], "depths": [1, 1], "num_heads": [2, 4], "masked_unit_size": [4, 4],
                    "query_stride": [2, 2], "num_query_pool": 1, "masked_unit_attention": [True, False]}),
    _image("levit", "Levit", inputs=_LARGE, tags="attention batchnorm",
           options={"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 4, 4],
                    "depths": [1, 1, 1], "key_dim": [8, 8, 8], "drop_path_rate": 0}),
    _image("mobilevit", "MobileViT", inputs=_LARGE, tags="attention batchnorm depthwise layernorm",
           options={"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
                    "num_attention_heads": 2, "image_size": 64}),
    _image("swiftformer", "SwiftFormer", inputs=_LARGE, tags="attention batchnorm depthwise",
           options={"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "image_size": 64, "mlp_ratio": 2}),
    # encoder, projection to the decoder of one layer; patches are shuffled by the noise and put back
    hf("vit_mae", "ViTMAEForPreTraining", tags="conv attention layernorm depth",
       options={**_PATCHES, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
                "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
       inputs=_floats_and(_noise, "noise"),
       groups={"heads": [2, 4, 4], "width": [16, 24, 32, 32, 32], "depth": [6]}),
    hf("videomae", "VideoMAEForVideoClassification", groups=DECODER, tags="conv attention layernorm depth",
       options={**LAYERS, "image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2},
       inputs=named(pixel_values=floats(4, 3, 16, 16))),
    # -- images, by convolution --
    # four streams; neurons four times as many
    _image("convnext", "ConvNext", options={"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
           groups={"width": [8, 12, 16, 20, 32, 48, 64, 64, 80], "depth": [5]}, tags="depthwise layernorm"),
    # the response normalisation is a residual branch of its own
    _image("convnextv2", "ConvNextV2", options={"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
           groups={"width": [8, 12, 16, 20, 32, 48, 64, 64, 80], "depth": [10]}, tags="depthwise layernorm"),
    # bottlenecks of a quarter, twice in every block; the first stage's block and the third's second have an identity
    # shortcut
    _image("resnet", "ResNet", tags="batchnorm",
           options={"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
           groups={"width": [4, 4, 8, 8, 12, 12, 12, 12, 16, 16, 16, 32, 48, 64], "depth": [2]}),
    # stem and four streams; groups of four channels, five blocks; squeezes of a quarter of a block's input
    _image("regnet", "RegNet", tags="grouped batchnorm squeeze",
           options={"embedding_size": 12, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "groups_width": 4},
           groups={"width": [3, 4, 4, 6, 6, 8, 8, 8, 8, 10, 12, 16, 24, 32, 40], "depth": [1]}),
    _image("mobilenet_v2", "MobileNetV2", inputs=_LARGE, options={"depth_multiplier": 0.25, "image_size": 64},
           tags="depthwise batchnorm"),
    _image("efficientnet", "EfficientNet", inputs=_LARGE, tags="depthwise batchnorm squeeze",
           options={"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 64, "hidden_dim": 320}),
    # pooling instead of attention: four streams, neurons four times as many
    _image("poolformer", "PoolFormer", inputs=_LARGE, options={"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
           groups={"width": [8, 16, 16, 16, 32, 64, 64, 64], "depth": [8]}, tags="groupnorm pooling layerscale"),
    _image("focalnet", "FocalNet", tags="depthwise layernorm gated",
           options={"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "hidden_sizes": [16, 32],
                    "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    # -- pictures out of pictures, boxes --
    # as pvt_v2, with neurons four times the stream; the decoder projects four streams to 16 each and fuses them to 16
    hf("segformer", "SegformerForSemanticSegmentation", inputs=_LARGE, tags="conv attention layernorm batchnorm depth",
       options={"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
                "decoder_hidden_size": 16},
       groups={"heads": [2, 2, 2], "width": [8] * 4 + [16] * 10 + [32, 64, 64, 64], "depth": [8]}),
    hf("upernet", "UperNetForSemanticSegmentation", inputs=_LARGE, tags="conv depthwise batchnorm layernorm cat depth",
       options={"backbone_config": {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1],
                                    "out_features": ["stage1", "stage2", "stage3", "stage4"]},
                "hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 8, "auxiliary_in_channels": 16,
                "num_labels": 5}),
    hf("depth_anything", "DepthAnythingForDepthEstimation", inputs=_SMALL, tags="conv attention layernorm depth",
       options={"backbone_config": {"model_type": "dinov2", **_PATCHES, "out_features": ["stage1", "stage2"],
                                    "reshape_hidden_states": False, "apply_layernorm": True},
                "patch_size": 8, "reassemble_hidden_size": 24, "reassemble_factors": [2, 1],
                "neck_hidden_sizes": [8, 16], "fusion_hidden_size": 16, "head_hidden_size": 8}),
    # backbone: four streams, two bottlenecks a stage, the first stage with an identity shortcut. Training clamps by the
    # values it finds, so that evaluation alone is a graph. The transformer's stream is an output; two layers in the
    # head of the boxes
    hf("detr", "DetrForObjectDetection", inputs=_LARGE,
       options={**_DETECTOR, "backbone_config": {**_RESNET, "out_features": ["stage4"]}},
       tags="evaluation conv attention batchnorm layernorm detection depth",
       groups={"heads": [4] * 6, "depth": [11],
               "width": [4, 4, 4, 4, 8, 8, 8, 8, 16, 16, 24, 24, 32, 32, 32, 32, 32, 32]}),
    hf("rt_detr", "RTDetrForObjectDetection", inputs=_LARGE, tags="evaluation conv attention detection depth",
       options={"backbone_config": {**_RESNET, "model_type": "rt_detr_resnet",
                                    "out_features": ["stage2", "stage3", "stage4"]},
                "encoder_hidden_dim": 16, "encoder_in_channels": [16, 32, 32], "encoder_layers": 1,
                "encoder_ffn_dim": 32, "encoder_attention_heads": 4, "d_model": 16, "num_queries": 6,
                "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 32, "num_feature_levels": 3,
                "decoder_n_points": 2, "decoder_layers": 2, "decoder_attention_heads": 4, "num_denoising": 0,
                "num_labels": 5}),
    hf("mask2former", "Mask2FormerForUniversalSegmentation", inputs=_LARGE,
       tags="evaluation conv attention groupnorm layernorm detection depth",
       options={"backbone_config": {"model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 16,
                                    "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4], "window_size": 2,
                                    "out_features": ["stage1", "stage2", "stage3", "stage4"]},
                "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32,
                "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "dim_feedforward": 32,
                "num_queries": 6, "num_labels": 5}),
    # the stream is an output; two hidden layers in the head of the classes and in that of the boxes
    hf("yolos", "YolosForObjectDetection", inputs=_SMALL, tags="conv attention layernorm detection depth",
       options={**_PATCHES, "image_size": [32, 32], "num_detection_tokens": 4},
       groups={"heads": [4, 4], "width": [24, 24, 24, 24, 32, 32], "depth": [4]}),
    # -- images with words --
    # both streams are outputs
    hf("clip", "CLIPModel", options={**_CLIP, "projection_dim": 16}, tags="conv attention layernorm tokens depth",
       inputs=_floats_and(words(9), "input_ids"), groups={"heads": [4] * 4, "width": [32] * 4, "depth": [8]}),
    # and an attention that pools the patches, with neurons of its own
    hf("siglip", "SiglipModel", options=_CLIP, inputs=_floats_and(words(9), "input_ids"),
       tags="conv attention layernorm tokens depth", groups={"heads": [4] * 5, "width": [32] * 5, "depth": [9]}),
    # -- series --
    hf("patchtst", "PatchTSTForPrediction", inputs=named(past_values=floats(16, 2)), groups=DECODER,
       options={"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 24,
                "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32, "prediction_length": 4},
       tags="attention batchnorm timeseries depth"),
    hf("patchtsmixer", "PatchTSMixerForPrediction", inputs=named(past_values=floats(16, 2)),
       options={"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 16,
                "num_layers": 2, "expansion_factor": 2, "prediction_length": 4},
       tags="batchnorm gated timeseries depth"),
    hf("time_series_transformer", "TimeSeriesTransformerModel", options=_SERIES,
       inputs=named(past_values=floats(10), past_time_features=floats(10, 1), past_observed_mask=_ones(10),
                    future_values=floats(4), future_time_features=floats(4, 1)),
       tags="attention layernorm timeseries depth"),
    # the stream is an output
    hf("decision_transformer", "DecisionTransformerModel", tags="attention layernorm depth",
       options={"state_dim": 5, "act_dim": 3, "hidden_size": 24, "max_ep_len": 16, "n_layer": 2, "n_head": 4,
                "n_inner": 32, "n_positions": 32},
       inputs=named(states=floats(4, 5), actions=floats(4, 3), rewards=floats(4, 1), returns_to_go=floats(4, 1),
                    timesteps=tokens(4, 16), attention_mask=_ones(4)),
       groups={"heads": [4, 4], "width": [32, 32], "depth": [4]}),
]  # fmt: skip
