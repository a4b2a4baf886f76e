"""Masks of other programs as named tensors, in safetensors or npz files.

Names and shapes are those of the programs' tensors (sources in
`masks/formats/conventions.py`; docs/formats.md has the code that saves them). Nothing
is unpickled.

* `auto_circuit`: `patch_mask` of every reading module, (head, writer), **1 ablates**;
  or its prune scores, of which the highest are kept.
* `edge_pruning`: the results of `get_edge_masks` and `get_node_masks`, (writer, head),
  1 keeps; a node's mask multiplies all of its edges.
* `circuit_breaking`: the mask parameters, (writer, head), 1 keeps.
* `disco_gp`: the mask logits, (writer, head), above 0 keeps.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.masks.formats.edge_lists import binary
from circuitcut.masks.formats.edge_matrices import (
    Part,
    Reads,
    flat_edges,
    matrices,
    parts_in,
)
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.atomic import read_tensors, write_tensors
from circuitcut.storage.errors import UserError, one_line
from circuitcut.storage.reading.files import MOST_BYTES, read_bytes
from circuitcut.storage.reading.typed_fields import shown


@dataclass(frozen=True)
class Layout:
    """Names and shapes of one program's tensors."""

    names: Mapping[Reads, str]
    """Name of the tensor of each kind of reader; `{}` is the layer (`logits`: last)."""
    writers_first: bool = True
    """True: a matrix is (writer, head); False: (head, writer)."""
    one_ablates: bool = False
    above: float | None = None
    """Edges with values above this one are kept; None: values are 0 or 1."""
    has_nodes: bool = False
    """True: the file also has masks of nodes, which multiply the masks of their edges.
    """


LAYOUTS: dict[str, Layout] = {
    "auto_circuit": Layout(
        {
            "q": "blocks.{}.hook_q_input",
            "k": "blocks.{}.hook_k_input",
            "v": "blocks.{}.hook_v_input",
            "qkv": "blocks.{}.hook_attn_in",
            "mlp": "blocks.{}.hook_mlp_in",
            "logits": "blocks.{}.hook_resid_post",
        },
        writers_first=False,
        one_ablates=True,
    ),
    "edge_pruning": Layout(
        {
            "q": "edges.{}.q",
            "k": "edges.{}.k",
            "v": "edges.{}.v",
            "mlp": "edges.{}.mlp",
            "logits": "edges.final",
        },
        has_nodes=True,
    ),
    "circuit_breaking": Layout(
        {
            "qkv": "blocks.{}.edge_mask_attentions",
            "mlp": "blocks.{}.edge_mask_mlp",
            "logits": "output_mask",
        }
    ),
    "disco_gp": Layout(
        {
            "q": "blocks.{}.edge_mask_attention_q_logits",
            "k": "blocks.{}.edge_mask_attention_k_logits",
            "v": "blocks.{}.edge_mask_attention_v_logits",
            "mlp": "blocks.{}.edge_mask_mlp_logits",
            "logits": "edge_mask_output_logits",
        },
        above=0.0,
    ),
}
"""The tensors of each format, by name of the format."""


def tensors_of(
    name: str, graph: ResidualGraph, kept: Bool[Tensor, "edge"]
) -> dict[str, Float[Tensor, "..."]]:
    """A mask as the tensors of the format `name`; masks of nodes are 1."""
    layout = LAYOUTS[name]
    values = (~kept if layout.one_ablates else kept).float()
    if layout.above is not None:
        values = 2 * values - 1 + layout.above
    parts = matrices(graph, values)
    tensors = {
        _name(layout, graph, part): _as_stored(
            layout, part, parts[part.layer, part.reads]
        )
        for part in parts_in(graph)
    }
    if layout.has_nodes:
        nodes = _node_shapes(graph)
        tensors |= {key: torch.ones(shape) for key, shape in nodes.items()}
    return tensors


def save_tensors(
    path: Path, name: str, graph: ResidualGraph, kept: Bool[Tensor, "edge"]
) -> None:
    """Write a mask as a safetensors file in the format `name`."""
    write_tensors(path, tensors_of(name, graph, kept))


def load_tensors(path: Path) -> dict[str, Float[Tensor, "..."]]:
    """The tensors of a .safetensors or .npz file as float32.

    Raises:
        UserError: When it is another kind of file, is damaged, or needs unpickling.
    """
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
    elif path.suffix == ".npz":
        tensors = _arrays(path)
    else:
        raise UserError(
            f"{path} must be a .safetensors or .npz file, because other files of "
            "tensors may hold code; docs/formats.md shows how to save one"
        )
    for key, value in tensors.items():
        if value.is_complex() or not value.isfinite().all():
            raise UserError(
                f"{path} must hold real, finite numbers; {shown(key)} has others"
            )
    return {key: value.float() for key, value in tensors.items()}


def is_merged(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have merged edges for a head's q, k and v."""
    names = LAYOUTS[name].names
    return "q" not in names or ("qkv" in names and names["qkv"].format(0) in tensors)


def with_inputs(
    graph: ResidualGraph, tensors: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, Float[Tensor, "..."]]:
    """Edge-Pruning's tensors, with added nodes of the embeddings if they are missing.

    A mask trained without `--with_embedding_nodes` has no such nodes: the embeddings
    are always on, so that the added edges are kept.
    """
    first = tensors.get("edges.0.mlp")
    if first is None or len(first) != graph.n_seen_by_mlp(0) - graph.n_inputs:
        return dict(tensors)
    extended = {key: torch.ones(()) for key in _node_shapes(graph)}
    for key, value in tensors.items():
        is_edges = key.startswith("edges.")
        rows = value.new_ones(graph.n_inputs, *value.shape[1:])
        extended[key] = torch.cat([rows, value]) if is_edges else value
    return extended


def kept_by(
    name: str,
    graph: ResidualGraph,
    tensors: Mapping[str, Float[Tensor, "..."]],
    path: Path,
) -> Bool[Tensor, "edge"]:
    """True at the edges that a mask in the format `name` keeps.

    Args:
        graph: The model's graph in that program.
        path: Path of the file, for messages.

    Raises:
        UserError: When tensors are missing, unknown or of another shape, or a value is
            neither 0 nor 1.
    """
    layout, values = LAYOUTS[name], values_in(name, graph, tensors, path)
    if layout.above is not None:
        return values > layout.above
    ones = binary(path, graph, values)
    return ~ones if layout.one_ablates else ones


def values_in(
    name: str,
    graph: ResidualGraph,
    tensors: Mapping[str, Float[Tensor, "..."]],
    path: Path,
) -> Float[Tensor, "edge"]:
    """The stored value of every edge, times the value of its writer if nodes have one.

    Raises:
        UserError: As in `kept_by`.
    """
    layout = LAYOUTS[name]
    shapes = {
        _name(layout, graph, part): _shape(layout, part) for part in parts_in(graph)
    }
    nodes = _node_shapes(graph) if layout.has_nodes else {}
    _check(path, {**shapes, **nodes}, tensors)
    blocks = {}
    for part in parts_in(graph):
        stored = tensors[_name(layout, graph, part)]
        matrix = stored.T if layout.writers_first and stored.dim() == 2 else stored
        blocks[part.layer, part.reads] = matrix.reshape(part.n_readers, part.n_writers)
    if layout.has_nodes:
        node_values = torch.cat([tensors[key].reshape(-1) for key in nodes])
        blocks = {
            key: block * node_values[: block.shape[1]] for key, block in blocks.items()
        }
    return flat_edges(graph, blocks)


def _name(layout: Layout, graph: ResidualGraph, part: Part) -> str:
    if part.reads not in layout.names:
        raise UserError(
            f"this format has no tensor for the edges into {part.reads} of a head; "
            "translate the mask first"
        )
    return layout.names[part.reads].format(min(part.layer, graph.n_layers - 1))


def _shape(layout: Layout, part: Part) -> tuple[int, ...]:
    one_head = part.n_readers == 1 and not layout.writers_first
    if part.reads in ("mlp", "logits") or one_head:
        return (part.n_writers,)
    shape = part.n_readers, part.n_writers
    return shape[::-1] if layout.writers_first else shape


def _as_stored(layout: Layout, part: Part, matrix: Tensor) -> Tensor:
    stored = matrix.T if layout.writers_first else matrix
    return stored.reshape(_shape(layout, part))


def _node_shapes(graph: ResidualGraph) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the masks of the writers, in the order of the writers."""
    inputs: dict[str, tuple[int, ...]] = {"nodes.tokens": ()}
    if graph.n_inputs == 2:
        inputs["nodes.positions"] = ()
    for layer in range(graph.n_layers):
        inputs[f"nodes.{layer}.heads"] = (graph.n_heads,)
        inputs[f"nodes.{layer}.mlp"] = ()
    return inputs


def _check(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> None:
    missing = [key for key in shapes if key not in tensors]
    unknown = sorted(set(tensors) - set(shapes))
    wrong = [
        f"{key} has shape {tuple(tensors[key].shape)}, this model's is {shape}"
        for key, shape in shapes.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    problems = [f"it lacks {_some(missing)}"] if missing else []
    problems += [f"it has the unknown {_some(unknown)}"] if unknown else []
    problems += [_some(wrong)] if wrong else []
    if problems:
        raise UserError(
            f"{path} is no mask of this model in this format: {'; '.join(problems)} "
            "(docs/formats.md)"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _arrays(path: Path) -> dict[str, Tensor]:
    raw = io.BytesIO(read_bytes(path))
    try:
        with zipfile.ZipFile(raw) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > MOST_BYTES:
            raise UserError(
                f"{path} holds more than {MOST_BYTES // 2**20:,} MiB when "
                "decompressed, the most that is read"
            )
        raw.seek(0)
        with np.load(raw, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise whatever the bytes lead to
        raise UserError(
            f"cannot read {path}: {one_line(error)}; write the file with numpy.savez "
            "from arrays of numbers"
        ) from error
