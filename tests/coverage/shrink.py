"""A tiny configuration of any model type: defaults, with every size replaced by a small one, by its name."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

HEADS, WIDTH, TOKENS, ROWS = 4, 32, 7, 3
LAYERS = 2

#: (name of a field, its value): the first pattern that matches the whole name wins; None leaves it as it is
RULES: tuple[tuple[str, Any], ...] = (
    (r"num_hidden_groups|inner_group_num|n_group|topk_group|num_ssm_heads|num_hash_functions", 1),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num|num_global_key_value_heads)", 2),
    (r"linear_num_(key|value)_heads|mamba_n_heads|mamba_num_heads|index_n_heads|lightning_nh", 4),
    (r"(.*_)?(num_attention_heads|attention_heads|num_heads|n_heads?|nhead|nheads|num_q_heads)", HEADS),
    (r"(.*_)?(num_attention_heads|attention_heads)_.*", HEADS),
    (r"(.*_)?(head_dim|d_kv|attention_head_size|attention_key_size|size_per_head|dim_head|v_head_dim|head_size)", 8),
    (r"(.*_)?(qk_nope_head_dim|qk_rope_head_dim|qk_head_dim|rotary_dim|linear_(key|value)_head_dim)", 8),
    (r"(kv|q|o)_lora_rank", 16),
    (r"(.*_)?(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_decoder_layers|depth"
     r"|num_encoder_layers|hidden_layers|x_layers|l_layers|r_layers|num_blocks|n_decoder_layers|resampler_depth"
     r"|decoder_num_hidden_layers|num_hidden_layers_.*)", LAYERS),
    (r"(.*_)?(hidden_size|d_model|n_embd|embed_dim|hidden_dim|emb_dim|embedding_size|dim|width|hidden_channels"
     r"|attention_hidden_size|output_hidden_size|out_hidden_size|encoder_hidden_dim|attention_dim|model_dim"
     r"|projection_dim|text_embed_dim|proj_dim|vision_hidden_size|mm_hidden_size|embedding_dim|lm_hidden_size"
     r"|text_hidden_size|decoder_embed_dim|adapter_dim|hidden_output_dim|query_dim_unused|pooler_output_size"
     r"|conv_bottleneck_unused|language_dim|fusion_hidden_size_unused|d_embed|word_embed_proj_dim)", WIDTH),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|mlp_dim|d_inner|n_inner|dim_feedforward|dim_ff"
     r"|feed_forward_size|intermediate_dim|expert_ffn_hidden_size|feedforward_dim|decoder_ffn_dim|projector_hidden_size"
     r"|intermediate_size_mlp|shared_intermediate_size|moe_intermediate_size|inner_dim|ffn_size)", 64),
    (r"(.*_)?(vocab_size|num_embeddings_unused|vocab_size_.*)", 64),
    (r"(.*_)?(max_position_embeddings|n_positions|max_seq_len|max_seq_length|max_sequence_length|n_ctx"
     r"|max_2d_position_embeddings|max_source_positions|max_target_positions|max_length|original_max_position_.*"
     r"|position_embedding_size|max_length_unused)", 64),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|moe_top_?k|moe_k", 2),
    (r"(.*_)?(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_routed_experts)", 4),
    (r"(.*_)?n(um)?_shared_experts|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"image_size|img_size|pretrain_image_size|image_resolution", 32),
    (r"patch_size", 8),
    (r"num_mel_bins|feature_size|input_feat_per_channel|n_mels", 16),
    (r"(.*_)?(sliding_window|attention_window_unused|local_attention|window)", 8),
    (r"num_queries|num_query_tokens|num_latents|num_object_queries|resampler_n_latents", 8),
    (r"num_(bpe|wordpiece|character)_labels|head_out_channels|codebook_size|num_embeddings", 32),
    (r"num_codevectors_per_group", 32),
    (r"depths|num_blocks", 1),
    (r"conv_dim|upsample_groups|output_channels|tdnn_dim|codebook_dim|num_filters|d_latents|latent_channels", WIDTH),
    (r"hidden_sizes|embed_dims|encoder_hidden_sizes", WIDTH),
    (r"num_conv_pos_embeddings", 8),
    (r"num_conv_pos_embedding_groups", 2),
    (r"(pad|sep|unk|cls|blank)_token_id", 0),
    (r"(bos|decoder_start|mask)_token_id", 1),
    (r"eos_token_id|forced_eos_token_id|sep_token_id", 2),
    (r"index_topk", 64),
    (r"mamba_d_state|ssm_state_size|mamba_expand|expand|state_size", 2),
)  # fmt: skip


def shrunk(config_class: type, **given: Any) -> Any:
    """`config_class` with small sizes; `given` are fields that must have these values (dotted: of a sub-config)."""
    defaults = config_class()
    base = next(c for c in config_class.__mro__ if c.__name__ in ("PreTrainedConfig", "PretrainedConfig"))
    fields = _fields(config_class, base)
    own = {k: v for k, v in given.items() if k in fields}
    values: dict[str, Any] = {}
    for name in fields:
        try:
            value = getattr(defaults, name)
        except Exception:  # fields that vary by layer refuse to be read
            continue
        if isinstance(value, base):
            prefix = f"{name}."
            inner = {k[len(prefix) :]: v for k, v in given.items() if k.startswith(prefix)}
            values[name] = shrunk(type(value), **inner)
            if not is_dataclass(config_class):  # transformers 4: parts are given as dicts
                values[name] = values[name].to_dict()
        elif name not in own:
            changed = _small(name, value)
            if changed is not None:
                values[name] = changed
    values.update(own)
    _same_as_queries(defaults, values)
    layers = next((values[n] for n in values if re.fullmatch("num_hidden_layers|n_layers?|num_layers", n)), LAYERS)
    for name in fields:  # one entry a layer
        if re.fullmatch(r"(.*_)?layer(s_block)?_types?|layers_block_type|indexer_types|no_rope_layers", name):
            kinds = vars(defaults).get(name)
            if name not in own and isinstance(kinds, list | tuple) and kinds:
                values[name] = _each_kind(list(kinds), layers)
    return config_class(**values)


def _fields(config_class: type, base: type) -> list[str]:
    common = set(inspect.signature(base.__init__).parameters)
    names = [n for n in inspect.signature(config_class.__init__).parameters if n not in ("self", "kwargs", "args")]
    return [n for n in names if n not in common or n.endswith("token_id")]


def _same_as_queries(defaults: Any, values: dict[str, Any]) -> None:
    """Without grouped queries in the defaults, none in the small one: some code knows no groups."""
    for name in values:
        queries = re.sub("num_key_value_heads|num_kv_heads", "num_attention_heads", name)
        if queries in values and queries != name and getattr(defaults, name) == getattr(defaults, queries):
            values[name] = HEADS


def _each_kind(kinds: list[Any], layers: int) -> list[Any]:
    """`layers` entries that hold every kind of layer, where there is room."""
    distinct = list(dict.fromkeys(kinds))
    return [distinct[i % len(distinct)] for i in range(layers)]


def _small(name: str, value: Any) -> Any:
    """The small value for a field, or None to leave its default."""
    if value in ("relu", "gated-relu"):
        return value.replace("relu", "gelu")  # smooth, for the finite differences
    if isinstance(value, dict) and "mrope_section" in value:
        return {**value, "mrope_section": [2, 1, 1]}
    if name == "initializer_range" or value is None:
        return None
    if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
        found = [_small(name, v) for v in value]
        return None if None in found else type(value)(found)
    if type(value) is not int or value < 0:
        return None
    rule = next((small for pattern, small in RULES if re.fullmatch(pattern, name)), None)
    if rule is None or name.endswith("token_id"):
        return rule
    return value if value == 1 else rule if "head" in name else min(value, rule)
