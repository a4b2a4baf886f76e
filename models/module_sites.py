"""Sites at modules of any network, for models outside the architecture table."""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from circuitcut.models.names import MODULE_KINDS, UnitKind
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError


def module_site(
    model: nn.Module,
    path: str,
    kind: UnitKind = "neurons",
    *,
    n_units: int | None = None,
    unit_size: int = 1,
    layer: int | None = None,
) -> Site:
    """The site at a module of `model`, for any architecture.

    `neurons` and `heads` gate the module's input (last axis), `hidden` its output (last
    axis), `weights` its weight matrix.

    Args:
        path: Path of the module, as in `model.named_modules()`.
        n_units: Number of units on the gated axis; required if the module has no weight
            that gives the width.
        unit_size: Width of one unit, for instance of a head.
        layer: Layer of the site in tables and figures; default: the first number in
            `path`, or 0.

    Raises:
        UserError: When there is no such module, its width is unknown, or the width is
            not a multiple of `unit_size`.
    """
    if kind not in MODULE_KINDS:
        raise UserError(
            f"argument kind must be one of {list(MODULE_KINDS)}, got {kind!r}; for "
            "edges use sites_of with a model of the architecture table"
        )
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        names = [name for name, _ in model.named_modules() if name]
        raise UserError(
            f"the model has no module {path!r}; it has {', '.join(names[:8])}, ..."
        ) from error
    width = _width(module, kind)
    if n_units is None and (width is None or width % unit_size):
        reason = "unknown" if width is None else f"{width}"
        raise UserError(
            f"the gated axis of {path} ({type(module).__name__}) has width {reason}, "
            f"units have {unit_size}; give n_units and unit_size"
        )
    if n_units is None:
        assert width is not None
        n_units = width // unit_size
    elif width is not None and n_units * unit_size != width:
        raise UserError(
            f"argument n_units times unit_size must be the width {width} of {path}, "
            f"got {n_units} times {unit_size}"
        )
    if layer is None:
        number = re.search(r"\d+", path)
        layer = int(number[0]) if number else 0
    return Site(kind, path, layer, n_units, unit_size)


def _width(module: nn.Module, kind: UnitKind) -> int | None:
    """Size of the gated axis; None if the module's weights do not determine it."""
    if isinstance(module, nn.Linear | Conv1D) and kind == "weights":
        return module.weight.numel()
    if kind == "weights":
        return None
    if isinstance(module, nn.Linear | Conv1D):
        n_out, n_in = module.weight.shape
        if isinstance(module, Conv1D):  # stored (in, out)
            n_out, n_in = n_in, n_out
        return n_out if kind == "hidden" else n_in
    if isinstance(module, nn.LayerNorm | nn.Embedding):
        return module.weight.shape[-1]
    return None
