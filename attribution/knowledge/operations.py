"""Suppress, enhance, erase and edit knowledge neurons; every change is undone exactly.

D. Dai et al. (2022), "Knowledge Neurons in Pretrained Transformers",
https://arxiv.org/abs/2104.08696. A unit's value v is what its neuron writes, a column
of the MLP's output projection. Suppress: the activation becomes 0. Enhance: it is
doubled. Erase: v becomes 0, or the embedding of the unknown token. Edit:

    v := v - l1 |v| / |E_old| E_old + l2 |v| / |E_new| E_new    (relative)
    v := v - l1 E_old + l2 E_new                                (plain, EleutherAI)

with the input embeddings E of the old and the new answer, l1 = 1 and l2 = 8 as
published for the first, 2 and 2 for the second.

The context managers restore the weights bit by bit, also after an exception; the
functions whose name ends in `_` change the model for good, so that it can be saved.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.knowledge.unit_sets import Unit
from circuitcut.models.architectures import sites_of
from circuitcut.models.spared import by_token
from circuitcut.storage.errors import UserError

ENHANCED = 2.0
"""Factor of an enhanced neuron."""
STRENGTHS: dict[str, tuple[float, float]] = {
    "relative": (1.0, 8.0),
    "plain": (2.0, 2.0),
}
"""The published l1 and l2."""
_Change = Callable[[Float[Tensor, "unit d_model"]], Float[Tensor, "unit d_model"]]


@contextmanager
def scaled(
    model: nn.Module,
    units: Collection[Unit],
    factor: float,
    positions: Int[Tensor, "batch mask"] | None = None,
) -> Iterator[None]:
    """The activations of some neurons times `factor` inside the context.

    Args:
        units: Pairs (layer, number).
        factor: 0 suppresses, 2 enhances, as published.
        positions: Where, in every row of the batches that run inside the context, for
            instance at the masks; None is everywhere.

    Raises:
        UserError: When a unit is not in the model.
    """
    with ExitStack() as hooks:
        for module, numbers in _by_module(model, units):
            hook = partial(_scale, numbers, factor, positions)
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield


def suppressed(
    model: nn.Module,
    units: Collection[Unit],
    positions: Int[Tensor, "batch mask"] | None = None,
) -> Any:
    """`scaled` by 0."""
    return scaled(model, units, 0.0, positions)


def enhanced(
    model: nn.Module,
    units: Collection[Unit],
    positions: Int[Tensor, "batch mask"] | None = None,
) -> Any:
    """`scaled` by 2."""
    return scaled(model, units, ENHANCED, positions)


@contextmanager
def erased(
    model: nn.Module, units: Collection[Unit], token: int | None = None
) -> Iterator[None]:
    """`erase_` inside the context; afterwards the weights are bit-identical."""
    with _kept(model, units):
        erase_(model, units, token)
        yield


@contextmanager
def edited(
    model: nn.Module,
    units: Collection[Unit],
    old: int,
    new: int,
    *,
    formula: str = "relative",
    strengths: tuple[float, float] | None = None,
) -> Iterator[None]:
    """`edit_` inside the context; afterwards the weights are bit-identical."""
    with _kept(model, units):
        edit_(model, units, old, new, formula=formula, strengths=strengths)
        yield


def scale_(model: nn.Module, units: Collection[Unit], factor: float) -> None:
    """Multiply the values of some neurons, at all positions and for good.

    Raises:
        UserError: When a unit is not in the model.
    """
    _change_(model, units, lambda values: factor * values)


def erase_(model: nn.Module, units: Collection[Unit], token: int | None = None) -> None:
    """Set the values of some neurons to 0, or to the input embedding of a token.

    Raises:
        UserError: When a unit or token is not in the model, or the embeddings have
            another width than the blocks.
    """
    if token is None:
        _change_(model, units, torch.zeros_like)
        return
    embedding = embedding_of(model, token)
    _change_(model, units, embedding.expand_as)


def edit_(
    model: nn.Module,
    units: Collection[Unit],
    old: int,
    new: int,
    *,
    formula: str = "relative",
    strengths: tuple[float, float] | None = None,
) -> None:
    """Move the values of some neurons from one answer to another.

    Args:
        old: Token of the answer that the model gives now.
        new: Token of the answer that it shall give.
        formula: See the formulas above.
        strengths: l1 and l2; None: as published for the formula.

    Raises:
        UserError: When there is no such formula, a unit or token is not in the model,
            or the embeddings have another width than the blocks.
    """
    if formula not in STRENGTHS:
        raise UserError(
            f"argument formula must be one of {', '.join(STRENGTHS)}, got {formula!r}"
        )
    l1, l2 = STRENGTHS[formula] if strengths is None else strengths
    e_old, e_new = embedding_of(model, old), embedding_of(model, new)
    if formula == "relative":
        e_old, e_new = e_old / e_old.norm(), e_new / e_new.norm()

    def change(values: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
        size = values.norm(dim=1, keepdim=True) if formula == "relative" else 1.0
        return values - l1 * size * e_old + l2 * size * e_new

    _change_(model, units, change)


def embedding_of(model: nn.Module, token: int) -> Float[Tensor, "d_model"]:
    """The input embedding of a token.

    Raises:
        UserError: When the vocabulary lacks it, or embeddings are not as wide as what a
            neuron writes (ELECTRA).
    """
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    if not 0 <= token < len(table):
        raise UserError(
            f"argument token must be one of the {len(table):,} of the vocabulary, got "
            f"{token}"
        )
    width = model.config.hidden_size  # type: ignore[union-attr]
    if table.shape[1] != width:
        raise UserError(
            f"the embeddings of this {model.config.model_type} are {table.shape[1]} "  # type: ignore[union-attr]
            f"wide and its blocks {width}: no neuron can write an embedding; suppress "
            "units or erase them to 0"
        )
    return table[token].detach()


def _change_(model: nn.Module, units: Collection[Unit], change: _Change) -> None:
    places = _by_module(model, units)  # checks them all before the first change
    with torch.no_grad():
        for module, numbers in places:
            values = _values(module)
            values[numbers] = change(values[numbers]).to(values.dtype)


@contextmanager
def _kept(model: nn.Module, units: Collection[Unit]) -> Iterator[None]:
    """The values of some neurons are afterwards as before, bit by bit."""
    before = [
        (_values(module), numbers, _values(module)[numbers].clone())
        for module, numbers in _by_module(model, units)
    ]
    try:
        yield
    finally:
        for values, numbers, kept in before:
            values[numbers] = kept


def _values(module: nn.Module) -> Float[Tensor, "unit d_model"]:
    """What every neuron writes: a view of the projection's weight."""
    weight = module.get_parameter("weight").detach()
    return weight if isinstance(module, Conv1D) else weight.T  # Conv1D is (in, out)


def _by_module(
    model: nn.Module, units: Collection[Unit]
) -> list[tuple[nn.Module, Int[Tensor, "unit"]]]:
    """The output projections of the units, and the numbers of their neurons."""
    sites = sites_of(model, ["neurons"])
    numbers: dict[int, list[int]] = {}
    for layer, number in sorted(set(units)):
        if not 0 <= layer < len(sites) or not 0 <= number < sites[layer].n_units:
            raise UserError(
                f"a unit must be a layer from 0 to {len(sites) - 1} and a neuron from "
                f"0 to {sites[0].n_units - 1}, got {[layer, number]}; these units are "
                "of another model"
            )
        numbers.setdefault(layer, []).append(number)
    return [
        (
            model.get_submodule(sites[layer].module),
            torch.tensor(of_layer, device=next(model.parameters()).device),
        )
        for layer, of_layer in numbers.items()
    ]


def _scale(
    numbers: Tensor,
    factor: float,
    positions: Tensor | None,
    _: nn.Module,
    args: tuple[Any, ...],
) -> tuple[Any, ...]:
    changed: Tensor = args[0].clone()
    if positions is None:
        changed[..., numbers] *= factor
        return (changed, *args[1:])
    n_rows = max(1, len(positions))
    shape = torch.Size((n_rows, len(changed) // n_rows))
    x, before = by_token(changed, shape), by_token(args[0], shape)
    if positions.shape[0] != x.shape[0]:
        raise UserError(
            "argument positions must have a row for every row of the batch, got "
            f"{positions.shape[0]} for {x.shape[0]}"
        )
    rows = torch.arange(len(x), device=x.device)
    index = rows[:, None, None], positions[:, :, None], numbers[None, None, :]
    x[index] = factor * before[index]  # a repeated position is scaled once
    return (changed, *args[1:])


def grouped(units: Collection[Unit]) -> Mapping[int, list[int]]:
    """The numbers of the neurons by layer, in order."""
    found: dict[int, list[int]] = {}
    for layer, number in sorted(units):
        found.setdefault(layer, []).append(number)
    return found
