"""Which modules of a block are the writers and readers of its residual graph: a table.

Decoders have norms before their readers, encoders have norms on the stream itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from circuitcut.models.residual.graph import (
    AttentionBias,
    Position,
    ResidualGraph,
    ValueBias,
)
from circuitcut.storage.errors import UserError

Fused = Literal["separate", "concatenated", "by head"]
OLMO_EPS = 1e-5  # a constant of transformers' OlmoLayerNorm


@dataclass(frozen=True)
class BlockParts:
    """Module paths below one block."""

    attention: str
    projections: tuple[str, ...]
    """Query, key, value below `attention`; one name where they are one module."""
    output: str
    """Attention's output projection."""
    norm_in: str | None
    """Norm before attention."""
    mlp: tuple[str, ...]
    """The MLP: modules that run one after the other."""
    norm_mlp: str | None
    """Norm before the MLP."""
    fused: Fused = "separate"
    """How one module's output holds queries, keys and values."""
    norm_attention: str | None = None
    """Norm on what attention writes (OLMo 2, Gemma 2)."""
    norm_written: str | None = None
    """Norm on what the MLP writes."""
    norms_on_stream: tuple[str, str] | None = None
    """Norms on the stream itself, after attention and after the MLP (encoders)."""
    fixed_norms: float | None = None
    """Norms are LayerNorms without parameters, which add this to the variance."""
    gain_offset: float = 0.0
    """Added to a norm's weight to give its gain."""
    parallel: Callable[[Any], bool] = lambda config: False
    has_wide_norms: bool = False
    """Queries and keys are normalised over all heads together (OLMo 2)."""
    position: str | None = None
    """Position embedding below the base model, where it is added to the stream."""
    counts_real_tokens: bool = False
    """Positions are counted from the first token that is no padding (OPT, Bloom)."""
    returns_tuple: bool = False
    """A block returns the stream as the first entry of a tuple."""
    attention_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments with which attention adds nothing to what its heads write (Bloom)."""
    excluded: Callable[[Any], str | None] = lambda config: None
    """Why a configuration has no residual graph; None where it has one."""


def _excluded_opt(config: Any) -> str | None:
    if not config.do_layer_norm_before:
        return "its decoder has norms on the stream itself (do_layer_norm_before false)"
    if config._remove_final_layer_norm:
        return "it has no norm after the last block (_remove_final_layer_norm)"
    if not config.layer_norm_elementwise_affine:
        return "its norms have no gains (layer_norm_elementwise_affine false)"
    return None


def _excluded_bloom(config: Any) -> str | None:
    if config.apply_residual_connection_post_layernorm:
        return (
            "each block replaces the stream by its norm "
            "(apply_residual_connection_post_layernorm)"
        )
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "it reads projections in slices (slow_but_exact); set it to false"
    return None


def _excluded_olmo(config: Any) -> str | None:
    if config.clip_qkv is not None:
        return (
            f"it clips queries, keys and values in place (clip_qkv {config.clip_qkv})"
        )
    return None


WITHOUT_GRAPH = {
    "modernbert": "its first block has no norm before attention, so that attention "
    "reads the mean of the stream too",
}
"""Families of the architecture table whose edges cannot be cut, with the reason."""

_LLAMA = BlockParts(
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    output="self_attn.o_proj",
    norm_in="input_layernorm",
    mlp=("mlp",),
    norm_mlp="post_attention_layernorm",
)
_GEMMA2 = replace(
    _LLAMA,
    norm_mlp="pre_feedforward_layernorm",
    norm_attention="post_attention_layernorm",
    norm_written="post_feedforward_layernorm",
    gain_offset=1.0,
)
_BERT = BlockParts(
    attention="attention.self",
    projections=("query", "key", "value"),
    output="attention.output.dense",
    norm_in=None,
    mlp=("intermediate", "output.dense"),
    norm_mlp=None,
    norms_on_stream=("attention.output.LayerNorm", "output.LayerNorm"),
)
PARTS: dict[str, BlockParts] = {
    "gpt2": BlockParts(
        attention="attn",
        projections=("c_attn",),
        output="attn.c_proj",
        norm_in="ln_1",
        mlp=("mlp",),
        norm_mlp="ln_2",
        fused="concatenated",
        position="wpe",
    ),
    "gpt_neo": BlockParts(
        attention="attn.attention",
        projections=("q_proj", "k_proj", "v_proj"),
        output="attn.attention.out_proj",
        norm_in="ln_1",
        mlp=("mlp",),
        norm_mlp="ln_2",
        position="wpe",
        returns_tuple=True,
    ),
    "gptj": BlockParts(
        attention="attn",
        projections=("q_proj", "k_proj", "v_proj"),
        output="attn.out_proj",
        norm_in="ln_1",
        mlp=("mlp",),
        norm_mlp="ln_1",  # attention and MLP read one norm of one stream
        parallel=lambda config: True,
        returns_tuple=True,
    ),
    "opt": BlockParts(
        attention="self_attn",
        projections=("q_proj", "k_proj", "v_proj"),
        output="self_attn.out_proj",
        norm_in="self_attn_layer_norm",
        mlp=("fc1", "activation_fn", "fc2"),
        norm_mlp="final_layer_norm",
        position="decoder.embed_positions",
        counts_real_tokens=True,
        excluded=_excluded_opt,
    ),
    "bloom": BlockParts(
        attention="self_attention",
        projections=("query_key_value",),
        output="self_attention.dense",
        norm_in="input_layernorm",
        mlp=("mlp.dense_h_to_4h", "mlp.gelu_impl", "mlp.dense_4h_to_h"),
        norm_mlp="post_attention_layernorm",
        fused="by head",
        returns_tuple=True,
        counts_real_tokens=True,
        attention_arguments={"residual": 0.0},
        excluded=_excluded_bloom,
    ),
    "gpt_neox": BlockParts(
        attention="attention",
        projections=("query_key_value",),
        output="attention.dense",
        norm_in="input_layernorm",
        mlp=("mlp",),
        norm_mlp="post_attention_layernorm",
        fused="by head",
        parallel=lambda config: config.use_parallel_residual,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": replace(_LLAMA, projections=("qkv_proj",), fused="concatenated"),
    "olmo": replace(_LLAMA, fixed_norms=OLMO_EPS, excluded=_excluded_olmo),
    "olmo2": replace(
        _LLAMA,
        norm_in=None,
        norm_mlp=None,
        norm_attention="post_attention_layernorm",
        norm_written="post_feedforward_layernorm",
        has_wide_norms=True,
    ),
    "gemma": replace(_LLAMA, gain_offset=1.0),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": replace(
        _BERT,
        norm_in="attention.self_attn_layer_norm",
        norm_mlp="LayerNorm",
        norms_on_stream=None,
        position="embeddings.position_embeddings",
    ),
    "electra": _BERT,
    "distilbert": BlockParts(
        attention="attention",
        projections=("q_lin", "k_lin", "v_lin"),
        output="attention.out_lin",
        norm_in=None,
        mlp=("ffn",),
        norm_mlp=None,
        norms_on_stream=("sa_layer_norm", "output_layer_norm"),
    ),
}

FINAL_NORMS = (
    "ln_f",
    "final_layer_norm",
    "norm",
    "decoder.final_layer_norm",
    "encoder.LayerNorm",
)
"""Names of the norm after the last block, below the base model."""


def parts_of(model: nn.Module) -> BlockParts:
    """The table's entry for `model`, by `config.model_type`.

    Raises:
        UserError: When its type is not in the table.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind in WITHOUT_GRAPH:
        raise UserError(
            f"model type {kind!r} has no residual graph: {WITHOUT_GRAPH[kind]}; cut "
            "other units than edges"
        )
    if kind not in PARTS:
        raise UserError(
            f"no residual graph for model type {kind!r}; edges can be cut in "
            f"{', '.join(sorted(PARTS))}"
        )
    return PARTS[kind]


def graph_of(
    model: nn.Module,
    *,
    separate_qkv: bool = True,
    attention_bias: AttentionBias = "always",
    position: Position = "merged",
    value_bias: ValueBias = "heads",
) -> ResidualGraph:
    """The residual graph of `model`, from its configuration alone.

    Raises:
        UserError: When the architecture is not in the table, or a switch asks for what
            it does not have.
    """
    parts = parts_of(model)
    config: Any = model.config
    reason = parts.excluded(config)
    if reason is not None:
        raise UserError(
            f"this {config.model_type} has no residual graph: {reason}; cut other "
            "units than edges"
        )
    n_heads = config.num_attention_heads
    n_groups = getattr(config, "num_key_value_heads", None) or n_heads
    if getattr(config, "add_cross_attention", False):
        raise UserError(
            f"this {config.model_type} also attends to another model's states, which "
            "no writer of its residual graph is; use a model without cross-attention"
        )
    if position != "merged" and parts.position is None:
        raise UserError(
            f"{config.model_type} adds no position embedding to the stream; use "
            f"position 'merged', got {position!r}"
        )
    if parts.norm_attention is not None and getattr(config, "attention_bias", False):
        raise UserError(
            f"this {config.model_type} has a bias before the norm on what attention "
            "writes (attention_bias), which no writer of its residual graph is; cut "
            "other units than edges"
        )
    if value_bias != "heads" and parts.norm_attention is not None:
        raise UserError(
            f"{config.model_type} normalises what its heads write together, so a value "
            f"bias adds no constant; use value_bias 'heads', got {value_bias!r}"
        )
    if not separate_qkv and n_groups != n_heads and parts.has_wide_norms:
        raise UserError(
            f"{config.model_type} with grouped queries normalises all keys together, "
            "so its heads cannot merge queries, keys and values; leave them separate"
        )
    return ResidualGraph(
        config.num_hidden_layers,
        n_heads,
        n_groups,
        separate_qkv,
        parts.parallel(config),
        attention_bias,
        position,
        value_bias,
    )


def check_modules(
    blocks: Sequence[nn.Module], parts: BlockParts, model_type: str
) -> None:
    """Refuse blocks without a module that reads or writes the residual stream.

    Raises:
        UserError: Naming the first module that is missing.
    """
    names = [parts.attention, parts.output, *parts.mlp]
    names += [f"{parts.attention}.{name}" for name in parts.projections]
    norms = (
        parts.norm_in,
        parts.norm_mlp,
        parts.norm_attention,
        parts.norm_written,
        *(parts.norms_on_stream or ()),
    )
    names += [norm for norm in norms if norm is not None]
    for layer, block in enumerate(blocks):
        present = dict(block.named_modules())
        missing = [name for name in names if name not in present]
        if missing:
            raise UserError(
                f"block {layer} of this {model_type} has no module {missing[0]!r}; "
                f"its residual graph needs {', '.join(names)}"
            )


def last_norm_of(model: nn.Module, last_block: str) -> str:
    """Path, below the base model, of the norm after the last block or at its end.

    Raises:
        UserError: When there is none.
    """
    on_stream = parts_of(model).norms_on_stream
    if on_stream is not None:
        return f"{last_block}.{on_stream[-1]}"
    base: nn.Module = getattr(model, "base_model", model)
    modules = dict(base.named_modules()).keys()
    for name in FINAL_NORMS:
        if name in modules:
            return name
    raise UserError(
        f"{type(base).__name__} has no norm after its last block; looked for "
        f"{', '.join(FINAL_NORMS)}"
    )
