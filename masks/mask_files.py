"""Read and write the two files of a frozen mask, and check that it fits a model.

`mask.safetensors` holds `keep/SITE` (bool) and `value/SITE` (the ablation values,
unless they are zero), and of a mask whose ablation follows a rule `flipped/SITE` (bool,
the signs of its neurons); `mask.json` holds the sites, that rule, the origin of the
mask, and the SHA-256 of the tensor file and of its own entries. Format version 1.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.ablation import AblationKind, AblationValues
from circuitcut.masks.edges.sites import (
    check_one_graph,
    graph_difference,
    modules_and_edges,
    n_seen,
)
from circuitcut.masks.neurons.rule import Rule, RuleKind, Sign
from circuitcut.models.names import UnitKind
from circuitcut.models.residual.graph import (
    AttentionBias,
    Position,
    ResidualGraph,
    ValueBias,
)
from circuitcut.models.sites import Site
from circuitcut.models.weights_hash import weights_hash, weights_sha256
from circuitcut.storage.atomic import (
    jsonable,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from circuitcut.storage.cache import content_hash
from circuitcut.storage.checksums import check_digest, file_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.provenance import Provenance
from circuitcut.storage.reading.typed_fields import (
    Between,
    Count,
    Digest,
    Positive,
    check_entries,
    check_type,
    shown,
)

FORMAT_VERSION = 1
POLARITY = "true keeps, false ablates"
TENSOR_FILE, HEADER_FILE = "mask.safetensors", "mask.json"
_MOST_LAYERS = 10_000
_Size = Annotated[int, Between(1, _MOST_LAYERS)]
"""Layers, or heads of a layer."""
_SINCE_DECEMBER_2026 = {"sha256", "header_sha256", "rule"}
"""Entries that older masks lack."""


@dataclass(frozen=True)
class MaskHeader:
    """The content of `mask.json`."""

    sites: list[dict[str, Any]]
    ablation: AblationKind | RuleKind
    special_ids: list[int]
    n_ablated: int
    n_units: int
    provenance: dict[str, Any]
    polarity: str = POLARITY
    format_version: int = FORMAT_VERSION
    sha256: str | None = None
    """Of `mask.safetensors`; None in masks before December 2026."""
    header_sha256: str | None = None
    """Of all other entries; None in masks before December 2026."""
    rule: dict[str, Any] | None = None
    """Fields of a `Rule` but its kind; None, and not written, where there is none."""

    def ablation_values(
        self, values: Mapping[str, Tensor], flipped: Mapping[str, Tensor]
    ) -> AblationValues:
        """The ablation values of these tensors.

        Raises:
            UserError: When the rule is none that there can be.
        """
        if self.rule is None:
            return AblationValues(self.ablation, values)
        fields: dict[str, Any] = {**self.rule, "kind": self.ablation}
        fields["positions"] = tuple(fields["positions"])
        return AblationValues(self.ablation, values, Rule(**fields), flipped)

    def site_tuple(self) -> tuple[Site, ...]:
        """The sites as objects."""
        return tuple(_site(site) for site in self.sites)


def site_dict(site: Site) -> dict[str, Any]:
    """A site in JSON types; only sites of `edges` have a graph."""
    return {key: value for key, value in asdict(site).items() if value is not None}


def _site(fields: Mapping[str, Any]) -> Site:
    graph = dict(fields.get("graph") or {})
    if "apart" in graph:  # its name before December 2026
        graph["separate_qkv"] = graph.pop("apart")
    return Site(**{**fields, "graph": ResidualGraph(**graph) if graph else None})


def write_mask_files(
    folder: Path,
    header: MaskHeader,
    keep: Mapping[str, Tensor],
    ablated: AblationValues,
) -> None:
    """Write both files into `folder`, each one atomically."""
    tensors = {f"keep/{name}": kept for name, kept in keep.items()}
    if header.ablation != "zero":
        stored = _stored_values(header.site_tuple(), ablated.values)
        tensors |= {f"value/{name}": value for name, value in stored.items()}
    if ablated.rule is not None:
        tensors |= {f"flipped/{name}": f for name, f in ablated.flipped.items()}
        rule = asdict(ablated.rule)
        del rule["kind"]
        header = replace(header, rule=rule)
    write_tensors(folder / TENSOR_FILE, tensors)
    header = replace(header, sha256=file_digest(folder / TENSOR_FILE))
    entries = jsonable(asdict(header))
    if header.rule is None:
        del entries["rule"]
    entries["header_sha256"] = _digest(entries)
    write_json(folder / HEADER_FILE, entries)


def read_header(folder: Path) -> dict[str, Any]:
    """The checked entries of the `mask.json` in a folder, its tensors unread.

    `provenance` is there, and `sha256`, which is None in masks before December 2026.

    Raises:
        UserError: As in `read_mask_files`.
    """
    path = folder / HEADER_FILE
    entries = read_json(path)
    header = _header(path, entries)
    _check_unchanged(path, entries)
    return vars(header)


def _check_unchanged(path: Path, entries: Mapping[str, Any]) -> None:
    """Check that every entry of `mask.json` is the one that was written."""
    if entries.get("header_sha256") not in (None, _digest(entries)):
        raise UserError(
            f"{path} was changed since it was written (its SHA-256 differs); restore "
            "it, or make the mask again"
        )


def _digest(entries: Mapping[str, Any]) -> str:
    """SHA-256 hex digest of all entries of `mask.json` but `header_sha256`."""
    others = {key: v for key, v in entries.items() if key != "header_sha256"}
    return content_hash(json.dumps(others, sort_keys=True))


def read_mask_files(
    path: Path,
) -> tuple[MaskHeader, dict[str, Tensor], AblationValues]:
    """Header, `keep` and ablation values of a mask, checked for consistency.

    Args:
        path: The folder, or one of its two files.

    Raises:
        UserError: When a file is missing, damaged or changed, or a tensor is missing,
            unknown or of the wrong shape; the message names it.
    """
    folder = _folder(path)
    entries = read_json(folder / HEADER_FILE)
    header = _header(folder / HEADER_FILE, entries)
    tensors = read_tensors(folder / TENSOR_FILE)
    sites = header.site_tuple()
    _check_tensors(folder / TENSOR_FILE, header, tensors)
    check_digest(folder / TENSOR_FILE, header.sha256, folder / HEADER_FILE)
    _check_unchanged(folder / HEADER_FILE, entries)
    keep = {site.name: tensors[f"keep/{site.name}"] for site in sites}
    values = {
        site.name: tensors[f"value/{site.name}"]
        for site in sites
        if f"value/{site.name}" in tensors
    }
    flipped = {
        site.name: tensors[f"flipped/{site.name}"]
        for site in sites
        if header.rule is not None
    }
    ablated = header.ablation_values(_values_of_all(sites, values), flipped)
    return header, keep, ablated


def _folder(path: Path) -> Path:
    return path.parent if path.name in (TENSOR_FILE, HEADER_FILE) else path


def _stored_values(
    sites: Sequence[Site], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values, those of edges once a writer: at the site that reads most of them."""
    _, edges = modules_and_edges(sites)
    given = [site for site in edges if site.name in values]
    if len(given) < 2:
        return dict(values)
    last = values[given[-1].name]
    told = {
        site.name
        for site in given[:-1]
        if torch.equal(values[site.name], last[: n_seen(site)])
    }
    return {name: value for name, value in values.items() if name not in told}


def _values_of_all(
    sites: Sequence[Site], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The stored values, and those of the edge sites that read a part of them."""
    _, edges = modules_and_edges(sites)
    if not edges or edges[-1].name not in values:
        return values
    last = values[edges[-1].name]
    return {site.name: last[: n_seen(site)] for site in edges} | values


def check_model(
    sites: Sequence[Site],
    made_for: Mapping[str, Any],
    path: Path,
    model: nn.Module,
    *,
    model_name: str | None = None,
    config_hash: str | None = None,
    allow_other_weights: bool = False,
) -> None:
    """Check that a mask fits a model.

    Args:
        sites: The mask's sites.
        made_for: The mask's provenance: `config_hash`, `weights_sha256` or
            `weights_hash`, `model`.
        path: Path of the mask, for the message.
        model: Its sites, their widths and its weights are checked.
        model_name: Name of the model, for the message.
        config_hash: Must equal the hash in the mask file.
        allow_other_weights: Accept a model of the same shape with other weights.

    Raises:
        UserError: When the mask is for another model; the message lists all
            differences.
    """
    differences = [
        difference
        for site in sites
        if (difference := _site_difference(model, site)) is not None
    ]
    graph = graph_difference(sites, model)
    if graph is not None:
        differences.append(graph)
    if config_hash is not None and made_for.get("config_hash") != config_hash:
        differences.append(
            f"config hash {made_for.get('config_hash')}, here {config_hash}"
        )
    if not allow_other_weights and not _has_weights(model, made_for):
        differences.append("other weights (allow_other_weights accepts them)")
    # A different name alone is no error: a folder can have been moved.
    if differences and model_name is not None and made_for.get("model") != model_name:
        differences.insert(0, f"model {made_for.get('model')!r}, here {model_name!r}")
    if differences:
        raise UserError(
            f"the mask in {path} is for another model: {'; '.join(differences)}"
        )


def _has_weights(model: nn.Module, made_for: Mapping[str, Any]) -> bool:
    """Whether the weights are those of the provenance: all of them, or a sample.

    A mask before December 2026 has the hash of a sample alone, one made by hand none.
    """
    whole, sample = made_for.get("weights_sha256"), made_for.get("weights_hash")
    if whole is not None:
        return bool(whole == weights_sha256(model))
    return sample is None or bool(sample == weights_hash(model))


def _site_difference(model: nn.Module, site: Site) -> str | None:
    try:
        module = model.get_submodule(site.module)
    except AttributeError:
        return f"site {site.name} is not in the model"
    width = _width(module, site)
    if width is not None and width != site.width:
        return f"site {site.name} is {site.width} wide in the mask, {width} here"
    return None


def _width(module: nn.Module, site: Site) -> int | None:
    """Size of a site's gated axis; None if only a forward pass can determine it."""
    weight = getattr(module, "weight", None)
    if weight is None or site.kind == "edges":
        return None
    if site.kind == "weights":
        return weight.numel()
    if site.kind == "hidden":
        return weight.shape[-1] if weight.dim() == 1 else None
    return weight.shape[0 if isinstance(module, Conv1D) else 1]


class _Graph(TypedDict):
    n_layers: _Size
    n_heads: _Size
    n_kv_heads: _Size
    separate_qkv: NotRequired[bool]
    apart: NotRequired[bool]
    parallel: NotRequired[bool]
    attention_bias: NotRequired[AttentionBias]
    position: NotRequired[Position]
    value_bias: NotRequired[ValueBias]


class _Site(TypedDict):
    kind: UnitKind
    module: str
    layer: Annotated[int, Between(-1, _MOST_LAYERS)]
    n_units: Positive
    unit_size: NotRequired[Positive]
    graph: NotRequired[_Graph | None]


class _Rule(TypedDict):
    theta: float | None
    gate: Sign
    post: Sign
    positions: list[Count]


class _Origin(Provenance, total=False):
    model: str | None
    revision: str | None
    weights_hash: str | None
    task: str | None
    gate: str | None
    direction: str | None


_TYPES: dict[str, Any] = {
    "sites": list[_Site],
    "special_ids": list[int],
    "n_ablated": Count,
    "n_units": Count,
    "sha256": Digest | None,
    "header_sha256": Digest | None,
    "rule": _Rule | None,
}


def _header(path: Path, fields: Any) -> MaskHeader:
    expected = {field.name for field in dataclasses.fields(MaskHeader)}
    if not isinstance(fields, dict) or "format_version" not in fields:
        raise UserError(
            f"{path} is not the header of a mask; name the folder of a mask"
        )
    if shown(fields["format_version"]) != str(FORMAT_VERSION):  # nor true
        raise UserError(
            f"{path} has format version {shown(fields['format_version'])}, this "
            f"program reads version {FORMAT_VERSION}; use the program version that "
            "wrote the file"
        )
    if not expected - _SINCE_DECEMBER_2026 <= set(fields) <= expected:
        raise UserError(
            f"{path} must hold the entries {sorted(expected)}; missing "
            f"{sorted(expected - _SINCE_DECEMBER_2026 - set(fields))}, unknown "
            f"{shown(sorted(set(fields) - expected))}"
        )
    if fields["polarity"] != POLARITY:
        raise UserError(
            f"{path} has the polarity {shown(fields['polarity'])}, this program needs "
            f"{POLARITY!r}; convert the file"
        )
    kinds = get_args(AblationKind) if fields.get("rule") is None else get_args(RuleKind)
    if fields["ablation"] not in kinds:
        raise UserError(
            f"{path} has the unknown ablation kind {shown(fields['ablation'])}"
        )
    check_entries(fields, _TYPES, str(path), closed=True)
    check_type(fields["provenance"], _Origin, f"{path}: provenance")
    header = MaskHeader(**fields)
    _check_sites(path, header.site_tuple())
    if header.rule is not None:
        _check_rule(path, header)
    return header


def _check_rule(path: Path, header: MaskHeader) -> None:
    """Refuse a rule that there cannot be, or one of units that are no neurons."""
    try:
        header.ablation_values({}, {"": torch.ones(1, dtype=torch.bool)})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if any(site.kind != "neurons" for site in header.site_tuple()):
        raise UserError(
            f"{path}: a rule is for sites of neurons alone, got others; restore it"
        )


def _check_sites(path: Path, sites: Sequence[Site]) -> None:
    """Refuse sites that contradict each other or their graph."""
    names = [site.name for site in sites]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} names the site {twice} twice; restore it")
    check_one_graph(sites)
    for site in sites:
        graph = site.graph
        if (graph is not None) != (site.kind == "edges"):
            raise UserError(
                f"{path}: a site of edges must have a graph and no other site one, got "
                f"{site.name}; restore it"
            )
        if graph is None:
            continue
        is_inside = 0 <= site.layer <= graph.n_layers
        n_edges = graph.n_edges_at(site.layer) if is_inside else None
        if (site.n_units, site.unit_size) != (n_edges, 1):
            raise UserError(
                f"{path}: site {site.name} has {site.n_units} units, but its layer in "
                f"the graph has {n_edges} edges; restore it"
            )


def _check_tensors(path: Path, header: MaskHeader, tensors: dict[str, Tensor]) -> None:
    sites = header.site_tuple()
    needed = {f"keep/{site.name}" for site in sites}
    allowed = set(needed)
    if header.ablation == "mean":
        modules, edges = modules_and_edges(sites)
        needed |= {f"value/{site.name}" for site in (*modules, *edges[-1:])}
        allowed = needed | {f"value/{site.name}" for site in sites}
    if header.rule is not None:
        needed |= {f"flipped/{site.name}" for site in sites}
        allowed |= needed
    if missing := sorted(needed - set(tensors)):
        raise UserError(
            f"{path} lacks the tensors {missing} that {HEADER_FILE} requires"
        )
    if extra := sorted(set(tensors) - allowed):
        raise UserError(
            f"{path} has the tensors {extra} that {HEADER_FILE} with ablation "
            f"{header.ablation} does not name"
        )
    for site in sites:
        kept = tensors[f"keep/{site.name}"]
        if kept.dtype != torch.bool or kept.shape != (site.n_units,):
            raise UserError(
                f"{path}: keep/{site.name} must be {site.n_units} bools, got "
                f"{kept.dtype} of shape {tuple(kept.shape)}"
            )
        value = tensors.get(f"value/{site.name}")
        _check_value(path, site, value, is_rule=header.rule is not None)
        flipped = tensors.get(f"flipped/{site.name}", kept)
        if flipped.dtype != torch.bool or flipped.shape != (site.n_units,):
            raise UserError(
                f"{path}: flipped/{site.name} must be {site.n_units} bools, got "
                f"{flipped.dtype} of shape {tuple(flipped.shape)}"
            )
    n_ablated = sum(int((~tensors[f"keep/{site.name}"]).sum()) for site in sites)
    n_units = sum(site.n_units for site in sites)
    if (header.n_ablated, header.n_units) != (n_ablated, n_units):
        raise UserError(
            f"{path} ablates {n_ablated} of {n_units} units, but {HEADER_FILE} says "
            f"{header.n_ablated} of {header.n_units}; one of them is of another mask"
        )


def _check_value(
    path: Path, site: Site, value: Tensor | None, *, is_rule: bool
) -> None:
    """Refuse ablation values of another shape or type, or that are not finite."""
    if value is None:
        return
    if site.kind == "edges":
        fits = value.dim() in (2, 3) and len(value) == n_seen(site)
        expected = f"({n_seen(site)} writers, d_model)"
    elif site.kind == "weights":  # the module's input, whose width the site leaves open
        fits, expected = value.dim() in (1, 2), "(width of the input,)"
    elif is_rule and value.dim() != 1:
        fits, expected = False, f"({site.width},)"
    else:
        fits = value.dim() in (1, 2) and value.shape[-1] == site.width
        expected = f"({site.width},)"
    if not fits or not value.is_floating_point():
        raise UserError(
            f"{path}: value/{site.name} must be floating-point numbers of shape "
            f"{expected}, got {value.dtype} of shape {tuple(value.shape)}"
        )
    if not value.isfinite().all():
        raise UserError(f"{path}: value/{site.name} holds NaN or infinity; restore it")
