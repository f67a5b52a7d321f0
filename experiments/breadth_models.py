"""Tiny classifiers of transformers with random weights: one of every kind that it can make from a small configuration.

Nothing here knows how a kind works: entries of a configuration that say a size get a small one, by their names, and
`OWN` has what a kind needs besides.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

CLASSES, WORDS, LENGTH = 3, 128, 12
"""Classes of all models; words of the vocabulary of texts, and tokens of the longest."""
PICTURE, WAVE = (3, 32, 32), 1600
"""Channels, height and width of images; samples of a wave."""

TASKS = ("SequenceClassification", "ImageClassification", "AudioClassification")

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_vocab"), WORDS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "dim_model"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "hidden_dim", "embed_dim", "projection_dim", "output_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "dff", "d_inner"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_position", "max_source_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("bos_token_id", "cls_token_id"), 2),
    **dict.fromkeys(("eos_token_id", "sep_token_id", "decoder_start_token_id", "forced_eos_token_id"), 3),
    "image_size": PICTURE[1],
    "num_channels": PICTURE[0],
    "patch_size": 8,
    "num_labels": CLASSES,
}
_WINDOWS = {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2, "patch_size": 4}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "embedding_size": 16}
_WAVES = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
_LATENT = {"num_key_value_heads": 4}
_HYBRID = {"num_hidden_layers": 4}  # the fourth is the first with attention
_PERCEIVER = {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1}
_EYE = {
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "minicpm3"), _LATENT),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_next"), _HYBRID),
    **{kind: {"head_dim": 8} for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **dict.fromkeys(("swin", "swinv2", "donut-swin"), _WINDOWS),
    **dict.fromkeys(("resnet", "poolformer"), _STAGES),
    **dict.fromkeys(("wav2vec2", "wav2vec2-conformer", "hubert", "unispeech", "unispeech-sat", "wavlm"), _WAVES),
    **dict.fromkeys(("gemma3", "modernvbert", "ultravbert"), _EYE),
    **{kind: {"depth_multiplier": 0.25} for kind in ("mobilenet_v1", "mobilenet_v2")},
    **{kind: {"decoder_start_token_id": 0} for kind in ("t5", "mt5", "umt5")},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 16},
    **{kind: {**_STAGES, "num_hidden_layers": None, "patch_size": 4} for kind in ("convnext", "convnextv2")},
    "bit": {**_STAGES, "hidden_sizes": [64] * 4, "num_groups": 8},
    "data2vec-audio": {**_WAVES, "num_conv_pos_embeddings": 5},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "esm": {"vocab_size": WORDS, "position_embedding_type": "absolute"},
    "falcon": {"head_dim": None},
    "focalnet": {"embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3], "patch_size": 4},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "hiera": {"image_size": [32, 32], "patch_stride": [4, 4], "masked_unit_size": [2, 2], "depths": [1, 1],
              "query_stride": [2, 2], "num_query_pool": 1, "embed_dim": 16, "num_heads": [2, 4], "patch_size": [7, 7]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 8},
    "luke": {"entity_vocab_size": 10},
    "mobilevitv2": {"patch_size": None},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": _PERCEIVER,
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (8, 24), "attn_layers": ["local", "lsh"],
                 "num_hidden_layers": None, "num_buckets": 2},
    "regnet": {**_STAGES, "groups_width": 8},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "sew": {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    "whisper": {"num_mel_bins": 16},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
"""What a kind needs besides; None keeps its own."""


def kinds(task: str) -> Mapping[str, str]:
    """Returns the class of every kind of model for a task, in transformers' own order."""
    from transformers.models.auto import modeling_auto

    word = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in task)
    found: Mapping[str, str] = getattr(modeling_auto, f"MODEL_FOR{word}_MAPPING_NAMES")
    return found


def model_of(kind: str, task: str) -> nn.Module:
    """Returns a tiny classifier of a kind with random weights, in eval mode, from seed 0."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**_settings(CONFIG_MAPPING[kind], kind))
    named = kinds(task)[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = getattr(transformers, named if isinstance(named, str) else named[0])(config)
        for layer in made.modules():  # else all answers are near 0, as no trained model's are
            if isinstance(layer, nn.Linear) and layer.out_features == CLASSES:
                nn.init.normal_(layer.weight, std=4)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias)
    return made.eval()


def _settings(config: Any, kind: str) -> dict[str, Any]:
    """The small sizes of a configuration, and of the ones in it."""
    default = config()
    told = {name: value for name, value in _SMALL.items() if _has(default, name)}
    for part, inner in getattr(config, "sub_configs", {}).items():
        if not inner.__name__.startswith("Auto"):
            told[part] = {name: value for name, value in _settings(inner, part).items() if name != "num_labels"}
    own = dict(OWN.get(kind, {}))
    for name, value in own.items():
        told[name] = {**told.get(name, {}), **value} if isinstance(value, dict) else value
    return {name: value for name, value in told.items() if value is not None}


def _has(config: Any, name: str) -> bool:
    try:
        held = getattr(config, name, None)
    except Exception:  # a property of a configuration that refuses to answer
        return False
    return name in ("pad_token_id", "num_labels") if held is None else not isinstance(held, list | tuple)
