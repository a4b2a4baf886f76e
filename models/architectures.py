"""The modules and sizes of the cuttable units of each architecture, as one table.

The input of attention's output projection is the concatenation of the query heads (also
with grouped queries; `d_head` may differ from `d_model / n_head`). The input of the
MLP's output projection is the neurons after the non-linearity (in gated MLPs after the
product). A block of transformers 5 returns a tensor (in GPT-Neo, GPT-J and Bloom a tuple
that begins with it), so the output of a pre-norm block is the residual stream. In a post-norm encoder the residual stream is the output of the
last LayerNorm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.models.mlp import MLP_TYPE
from circuitcut.models.names import UNIT_KINDS, UnitKind
from circuitcut.models.residual.block_modules import (
    check_modules,
    graph_of,
    last_norm_of,
    parts_of,
)
from circuitcut.models.residual.graph import (
    AttentionBias,
    Position,
    ResidualGraph,
    ValueBias,
)
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError

EMBEDDING_LAYER = -1


@dataclass(frozen=True)
class Architecture:
    """Module paths relative to the base model; `{}` in a path is the layer number."""

    block: str
    """One layer; the weights of its Linear and Conv1D modules can be cut."""
    neurons: str
    """MLP output projection: its input is (batch, seq, d_mlp)."""
    heads: str | None
    """Attention output projection: its input is (batch, seq, n_head * d_head)."""
    hidden: str
    """Module whose output is the layer's (batch, seq, d_model), before any dropout."""
    embeddings: tuple[str, ...] = ()
    """The last existing module of these; its output is the embedding level."""
    is_decoder: bool = True
    texts: str = ""
    """The module that gets the texts, where a head calls it and not the base model."""
    d_mlp: Callable[[Any], int] = attrgetter("intermediate_size")
    gate: str | None = None
    """Module of a gated MLP whose output, or the first half of it, is (batch, seq,
    d_mlp) before the non-linearity; None: the MLP has no gate."""


_GPT2 = Architecture(
    block="h.{}",
    neurons="h.{}.mlp.c_proj",
    heads="h.{}.attn.c_proj",
    hidden="h.{}",
    embeddings=("drop",),  # the only module with token plus position embeddings
    d_mlp=lambda config: config.n_inner or 4 * config.n_embd,
)
_GPT_NEO = Architecture(
    block="h.{}",
    neurons="h.{}.mlp.c_proj",
    heads="h.{}.attn.attention.out_proj",
    hidden="h.{}",
    embeddings=("drop",),
    d_mlp=lambda config: config.intermediate_size or 4 * config.hidden_size,
)
_GPTJ = Architecture(
    block="h.{}",
    neurons="h.{}.mlp.fc_out",
    heads="h.{}.attn.out_proj",
    hidden="h.{}",
    embeddings=("drop",),
    d_mlp=lambda config: config.n_inner or 4 * config.n_embd,
)
_OPT = Architecture(
    block="decoder.layers.{}",
    neurons="decoder.layers.{}.fc2",
    heads="decoder.layers.{}.self_attn.out_proj",
    hidden="decoder.layers.{}",
    # no module has the sum of token and position embeddings as its output
    texts="decoder",
    d_mlp=attrgetter("ffn_dim"),
)
_BLOOM = Architecture(
    block="h.{}",
    neurons="h.{}.mlp.dense_4h_to_h",
    heads="h.{}.self_attention.dense",
    hidden="h.{}",
    embeddings=("word_embeddings_layernorm",),
    d_mlp=lambda config: 4 * config.hidden_size,
)
_GPT_NEOX = Architecture(
    block="layers.{}",
    neurons="layers.{}.mlp.dense_4h_to_h",
    heads="layers.{}.attention.dense",
    hidden="layers.{}",
    embeddings=("emb_dropout",),
)
# Gemma 1 to 3 scale their embeddings by sqrt(d_model) inside `embed_tokens` (transformers 5):
# there too the output of that module is the first state of the residual stream.
_LLAMA = Architecture(
    block="layers.{}",
    neurons="layers.{}.mlp.down_proj",
    heads="layers.{}.self_attn.o_proj",
    hidden="layers.{}",
    embeddings=("embed_tokens",),
    gate="layers.{}.mlp.gate_proj",
)
_PHI3 = replace(_LLAMA, gate="layers.{}.mlp.gate_up_proj")  # the gate's rows first
_BERT = Architecture(
    block="encoder.layer.{}",
    neurons="encoder.layer.{}.output.dense",
    heads="encoder.layer.{}.attention.output.dense",
    hidden="encoder.layer.{}.output.LayerNorm",
    # ELECTRA has a projection if its embeddings are narrower than its blocks.
    embeddings=("embeddings.LayerNorm", "embeddings_project"),
    is_decoder=False,
)
# Pre-norm encoders: blocks write the residual stream itself, as in decoders.
_XLM_R_XL = Architecture(
    block="encoder.layer.{}",
    neurons="encoder.layer.{}.output.dense",
    heads="encoder.layer.{}.attention.output.dense",
    hidden="encoder.layer.{}",
    embeddings=("embeddings.dropout",),  # the only module with the sum of embeddings
    is_decoder=False,
)
# Its fused `Wi` makes both halves of a gated MLP; `Wo` reads their product.
_MODERNBERT = Architecture(
    block="layers.{}",
    neurons="layers.{}.mlp.Wo",
    heads="layers.{}.attn.Wo",
    hidden="layers.{}",
    embeddings=("embeddings.norm",),
    is_decoder=False,
    gate="layers.{}.mlp.Wi",  # the rows that the non-linearity acts on first
)
_DISTILBERT = Architecture(
    block="transformer.layer.{}",
    neurons="transformer.layer.{}.ffn.lin2",
    heads="transformer.layer.{}.attention.out_lin",
    hidden="transformer.layer.{}.output_layer_norm",
    embeddings=("embeddings.LayerNorm",),
    is_decoder=False,
    d_mlp=attrgetter("hidden_dim"),
)
_MLP = Architecture(
    block="blocks.{}",
    neurons="output",
    heads=None,
    hidden="blocks.{}",
    is_decoder=False,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "gptj": _GPTJ,
    "opt": _OPT,
    "bloom": _BLOOM,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "phi3": _PHI3,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _XLM_R_XL,
    "electra": _BERT,
    "modernbert": _MODERNBERT,
    "distilbert": _DISTILBERT,
    MLP_TYPE: _MLP,
}


def architecture_of(model: nn.Module) -> Architecture:
    """The table's entry for `model`, by `config.model_type`.

    Raises:
        UserError: When the model has no configuration or its type is not in the table.
    """
    config = _config_of(model)
    return architecture_named(getattr(config, "model_type", type(model).__name__))


def architecture_named(model_type: str) -> Architecture:
    """The table's entry for a model type.

    Raises:
        UserError: When the type is not in the table.
    """
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"no adapter for model type {model_type!r}; use one of "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type]


def text_module(model: nn.Module) -> Any:
    """The module that gets the inputs, with a head and without: of most the base model.

    Of OPT it is the decoder. A model outside the table is its own base model.
    """
    base: nn.Module = getattr(model, "base_model", model)
    known = ARCHITECTURES.get(getattr(_config_of(model), "model_type", ""))
    return base if known is None else base.get_submodule(known.texts)


def n_layers(model: nn.Module) -> int:
    """Number of blocks of `model`; layers are numbered from 0.

    Raises:
        UserError: When the architecture is not in the table.
    """
    architecture_of(model)
    return _config(model).num_hidden_layers


def block_paths(model: nn.Module) -> list[str]:
    """Paths of the blocks, the first one first.

    Raises:
        UserError: When the model type is not in the table.
    """
    block = architecture_of(model).block
    return [_prefix(model) + block.format(i) for i in range(n_layers(model))]


def sites_of(
    model: nn.Module,
    units: Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    merged_qkv: bool = False,
    attention_bias: AttentionBias = "always",
    position_node: Position = "merged",
    value_bias: ValueBias = "heads",
) -> tuple[Site, ...]:
    """All sites of the requested kinds, ordered by kind (`UNIT_KINDS`), then by layer.

    Edges into layers that are not requested are never cut.

    Args:
        model: A transformers model with or without a task head, or a model of this
            package.
        units: Kinds of units: `neurons`, `heads`, `hidden`, `weights`, `edges`.
        layers: Block numbers from 0, -1 for the embedding level (`hidden` only), and
            the number of blocks for the logits (`edges` only); None means all of them.
        merged_qkv: Edges only. A head's q, k and v read each writer through one merged
            edge; default: separate edges for q, k and v.
        attention_bias: Edges only. The bias of attention's output projection is
            `always` on, or each of the `heads` writes an equal part of it.
        position_node: Edges only. The position embedding is `merged` with the token
            embedding, is a writer of its `own`, or is `always` on.
        value_bias: Edges only. The constant that a head's value bias adds to what it
            writes stays in the `heads`, or is part of the `output` bias of all heads;
            with `output_with_norm` so is what the bias of the norm before adds to it.

    Raises:
        UserError: For an unknown kind or architecture, a layer that the model does not
            have, a kind that the architecture does not have, or `edges` together with
            `hidden` or `weights`.
    """
    architecture = architecture_of(model)
    _check_units(units)
    edges = _edge_sites(
        model,
        units,
        separate_qkv=not merged_qkv,
        attention_bias=attention_bias,
        position=position_node,
        value_bias=value_bias,
    )
    requested_layers = _checked_layers(model, architecture, units, layers)
    prefix = _prefix(model)
    kinds = [kind for kind in UNIT_KINDS if kind in units]
    sites = [
        site
        for kind in kinds
        for layer in requested_layers
        for site in _sites(model, architecture, prefix, kind, layer)
    ]
    sites += [site for site in edges if site.layer in requested_layers]
    missing = [kind for kind in kinds if not any(s.kind == kind for s in sites)]
    if missing:
        raise UserError(
            f"{_config(model).model_type} has no {missing[0]} in layers "
            f"{requested_layers}; choose other units or layers"
        )
    return tuple(sites)


def gate_path(model: nn.Module, site: Site) -> str | None:
    """Path of the module that computes the gate of the neurons at `site`.

    Its output, or the first half of it, is the gate before the non-linearity. None: the
    MLP has no gate, or the site is none of neurons in the architecture table.
    """
    known = ARCHITECTURES.get(getattr(_config_of(model), "model_type", ""))
    if known is None or known.gate is None or site.kind != "neurons":
        return None
    prefix = _prefix(model)
    if site.module != prefix + known.neurons.format(site.layer):
        return None
    return prefix + known.gate.format(site.layer)


def check_sites(model: nn.Module, sites: Sequence[Site]) -> None:
    """Run `model` once on a small input and check the declared width of every site.

    For sites of `edges` only the modules are checked.

    Raises:
        UserError: When modules are missing or do not run, or their measured width is
            not the declared one; the message names them.
    """
    modules = dict(model.named_modules())
    absent = [site.module for site in sites if site.module not in modules]
    if absent:
        raise UserError(
            f"this {_config(model).model_type} has no module {_some(absent)}; use a "
            "model and a transformers version (>=5.9,<6) with that module"
        )
    sites = [site for site in sites if site.kind != "edges"]
    measured = _measured_widths(model, sites)
    wrong = [
        f"{site.name} declared {site.width}, measured {width}"
        for site in sites
        if (width := measured.get(site.name, "nothing")) != site.width
    ]
    if wrong:
        raise UserError(
            f"this {_config(model).model_type} differs from the adapter table: "
            f"{_some(wrong)}; correct its config.json"
        )


def _measured_widths(model: Any, sites: Sequence[Site]) -> dict[str, int | str]:
    """Size of each site's gated axis in one forward pass; only of sites that run."""
    widths: dict[str, int | str] = {}

    def record(site: Site, value: Any) -> None:
        is_tensor = isinstance(value, Tensor)
        widths[site.name] = value.shape[-1] if is_tensor else type(value).__name__

    with ExitStack() as stack:
        for site in sites:
            module: Any = model.get_submodule(site.module)
            if site.kind == "weights":
                widths[site.name] = module.weight.numel()
            elif site.kind == "hidden":
                handle = module.register_forward_hook(
                    lambda _module, _args, output, site=site: record(
                        site, output[0] if isinstance(output, tuple) else output
                    )
                )
                stack.callback(handle.remove)
            else:
                handle = module.register_forward_pre_hook(
                    lambda _module, args, site=site: record(site, args[0])
                )
                stack.callback(handle.remove)
        stack.callback(model.train, model.training)
        model.eval()
        device = next(model.parameters()).device
        inputs = {key: value.to(device) for key, value in model.dummy_inputs.items()}
        if "input_ids" in inputs:  # a small vocabulary may not have the dummy ids
            inputs["input_ids"] = inputs["input_ids"] % model.config.vocab_size
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            model(**inputs)
    return widths


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown} and {len(items) - 3} more"


def _check_units(units: Sequence[str]) -> None:
    unknown = sorted(set(units) - set(UNIT_KINDS))
    if unknown or not units:
        raise UserError(
            f"argument units must name some of {', '.join(UNIT_KINDS)}, "
            f"got {unknown if unknown else 'none'}"
        )


def _checked_layers(
    model: nn.Module,
    architecture: Architecture,
    units: Sequence[str],
    layers: Sequence[int] | None,
) -> list[int]:
    has_embeddings = "hidden" in units and bool(architecture.embeddings)
    first = EMBEDDING_LAYER if has_embeddings else 0
    known = range(first, n_layers(model) + ("edges" in units))
    requested_layers = sorted(set(known if layers is None else layers))
    outside = [layer for layer in requested_layers if layer not in known]
    if outside or not requested_layers:
        no_level = "hidden" in units and not architecture.embeddings
        raise UserError(
            f"argument layers must name layers {known[0]} to {known[-1]} of this model "
            f"for {' '.join(units)}, got {outside if outside else 'none'}"
            + ("; no module has its sum of embeddings as output" * no_level)
        )
    return requested_layers


def _sites(
    model: nn.Module,
    architecture: Architecture,
    prefix: str,
    kind: UnitKind,
    layer: int,
) -> Iterator[Site]:
    """Sites of one kind in one layer: several for `weights`, else one or none."""
    config = _config(model)
    if kind == "hidden":
        path = architecture.hidden.format(layer)
        if layer == EMBEDDING_LAYER:
            path = _last_existing(model, prefix, architecture.embeddings)
        yield Site("hidden", prefix + path, layer, config.hidden_size)
    elif layer == EMBEDDING_LAYER or layer == n_layers(model):
        return
    elif kind == "neurons":
        path = prefix + architecture.neurons.format(layer)
        yield Site("neurons", path, layer, architecture.d_mlp(config))
    elif kind == "heads" and architecture.heads:
        path = prefix + architecture.heads.format(layer)
        yield Site("heads", path, layer, config.num_attention_heads, d_head(config))
    elif kind == "weights":
        block = prefix + architecture.block.format(layer)
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            if isinstance(module, nn.Linear | Conv1D):
                yield Site("weights", name, layer, module.weight.numel())


def _edge_sites(
    model: nn.Module,
    units: Sequence[str],
    *,
    separate_qkv: bool,
    attention_bias: AttentionBias,
    position: Position,
    value_bias: ValueBias,
) -> list[Site]:
    """One site per layer and one for the logits, in the order of the graph."""
    if "edges" not in units:
        is_changed = {
            "merged_qkv": not separate_qkv,
            "attention_bias": attention_bias != "always",
            "position_node": position != "merged",
            "value_bias": value_bias != "heads",
        }
        for name in (name for name, changed in is_changed.items() if changed):
            raise UserError(
                f"{name} is about edges only, got units {' '.join(units)}; leave it out"
            )
        return []
    excluded = [kind for kind in ("hidden", "weights") if kind in units]
    if excluded:
        raise UserError(
            "argument units can name edges beside neurons and heads only, got edges "
            f"and {' and '.join(excluded)}; train one mask for each"
        )
    graph = graph_of(
        model,
        separate_qkv=separate_qkv,
        attention_bias=attention_bias,
        position=position,
        value_bias=value_bias,
    )
    sites = edge_sites(model, graph)
    blocks = [model.get_submodule(site.module) for site in sites[:-1]]
    check_modules(blocks, parts_of(model), _config(model).model_type)
    return list(sites)


def edge_sites(model: nn.Module, graph: ResidualGraph) -> tuple[Site, ...]:
    """Sites of all edges of `graph`: one per layer and one for the logits, in order.

    Args:
        model: Gives the names of the modules.
        graph: A residual graph of this model, with any options.
    """
    prefix, block = _prefix(model), architecture_of(model).block
    blocks = [block.format(layer) for layer in range(graph.n_layers)]
    last_norm = last_norm_of(model, blocks[-1])
    return tuple(
        Site("edges", prefix + path, layer, graph.n_edges_at(layer), graph=graph)
        for layer, path in enumerate([*blocks, last_norm])
    )


def final_norm_path(model: nn.Module) -> str:
    """Path of the norm after the last block, or at its end.

    Raises:
        UserError: When the architecture is not in the table, or has none.
    """
    last = architecture_of(model).block.format(n_layers(model) - 1)
    return _prefix(model) + last_norm_of(model, last)


def d_head(config: Any) -> int:
    """Width of a query head; Qwen 3 and Gemma 2 have it in their configuration."""
    head_dim = getattr(config, "head_dim", None)
    return head_dim or config.hidden_size // config.num_attention_heads


def _config(model: nn.Module) -> Any:
    return model.config


def _config_of(model: nn.Module) -> Any:
    """The configuration; None: a network of its own."""
    return getattr(model, "config", None)


def _prefix(model: nn.Module) -> str:
    """Path of the base model in `model`; empty if there is no task head."""
    if getattr(model, "base_model", model) is model:
        return ""
    return f"{model.base_model_prefix}."


def _last_existing(model: nn.Module, prefix: str, paths: Sequence[str]) -> str:
    existing = dict(model.named_modules()).keys()
    return [path for path in paths if path == paths[0] or prefix + path in existing][-1]
