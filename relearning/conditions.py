"""What is relearned from what: the conditions, and which parameters train."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.lora import lora_rank
from circuitcut.storage.errors import UserError

HOLDINGS = ("lasting", "one_shot")


def _cut(mask: FrozenMask, seed: int) -> FrozenMask:
    del seed
    return mask


def _random(mask: FrozenMask, seed: int) -> FrozenMask:
    return mask.random_like(seed)


def _uncut(mask: FrozenMask, seed: int) -> None:
    del mask, seed


CONDITIONS: dict[str, Callable[[FrozenMask, int], FrozenMask | None]] = {
    "cut": _cut,
    "uncut": _uncut,
    "random": _random,
    "retain_only": _cut,
    "never_learned": _uncut,
}
"""Name -> the mask that a condition starts from; None leaves the model uncut.

`retain_only` is the cut model fine-tuned on examples without the concept;
`never_learned` is a base model that was trained without the concept's examples.
"""
WHOLE = ("uncut", "never_learned")
"""Conditions without a cut, and so without a holding."""


@dataclass(frozen=True)
class Condition:
    """One fine-tuning run of the protocol."""

    name: str
    """Key of `CONDITIONS`."""
    holding: str | None
    """`lasting`: the mask stays on. `one_shot`: written once. None without a cut."""
    seed: int
    """Seeds the order of the data, dropout and the random cut."""
    limit: int | None = None
    """Number of training examples that hold the concept; None is the whole split.

    0 in `retain_only`, and there alone.
    """

    def __post_init__(self) -> None:
        if self.name not in CONDITIONS:
            raise UserError(
                f"argument conditions must be from {sorted(CONDITIONS)}, "
                f"got {self.name!r}"
            )
        if self.holding is not None and self.holding not in HOLDINGS:
            raise UserError(
                f"argument holding must be one of {HOLDINGS}, got {self.holding!r}"
            )
        if self.retains_only:
            if self.limit != 0:
                raise UserError(
                    "argument limit must be 0 in retain_only, which sees no example "
                    f"of the concept, got {self.limit}"
                )
        elif self.limit is not None and self.limit < 1:
            raise UserError(
                f"argument limits must be positive numbers of examples, got "
                f"{self.limit}; leave the limit out for all of them"
            )

    @property
    def retains_only(self) -> bool:
        """Whether it is fine-tuned on examples without the concept."""
        return self.name == "retain_only"

    @property
    def start(self) -> str:
        """The condition whose fresh model is the same."""
        return "cut" if self.retains_only else self.name

    @property
    def key(self) -> str:
        """Unique folder name, e.g. `cut-lasting-16-seed0`."""
        limit = "all" if self.limit is None else str(self.limit)
        parts = (self.name, self.holding, limit, f"seed{self.seed}")
        return "-".join(part for part in parts if part)

    def mask(self, mask: FrozenMask) -> FrozenMask | None:
        """The mask this condition starts from."""
        return CONDITIONS[self.name](mask, self.seed)


def conditions(
    names: tuple[str, ...],
    holdings: tuple[str, ...],
    seeds: tuple[int, ...],
    limits: tuple[int | None, ...],
) -> list[Condition]:
    """Every combination, without repeats.

    Uncut models have no holding, and `retain_only` has limit 0 whatever the limits.

    Raises:
        UserError: When a list is empty or holds a name or number that is not allowed.
    """
    for argument, given in {
        "conditions": names,
        "holdings": holdings,
        "seeds": seeds,
        "limits": limits,
    }.items():
        if not given:
            raise UserError(f"argument {argument} must not be empty; give at least one")
    combined = [
        Condition(
            name,
            None if name in WHOLE else holding,
            seed,
            0 if name == "retain_only" else limit,
        )
        for limit in limits
        for seed in seeds
        for name in names
        for holding in holdings
    ]
    return list(dict.fromkeys(combined))


PARTS: dict[str, str] = {
    "all": r"",
    "mlp": r"(^|\.)(mlp|ffn|intermediate)\.|\.layer\.\d+\.output\.dense\.|^blocks\.",
    "attention": r"(^|\.)(attn|attention|self_attn)\.",
}
"""Names for `trained` -> the regular expression a parameter's name must match."""

_LAYER = re.compile(r"\.(\d+)\.")
_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?")


def trained_parameters(model: nn.Module, trained: str) -> dict[str, nn.Parameter]:
    """The parameters that relearning trains, by name.

    Args:
        model: The model to fine-tune.
        trained: `head`, a key of `PARTS`, `layers:2` or `layers:2-4` (blocks counted
            from 0, both ends included), or a regular expression that is searched in
            names. `head` is what lies outside `base_model_prefix`, or outside `blocks`
            where the model has no such attribute. Integer parameters are left out.
            `lora` and `lora:RANK` are the adapters that `lora.add_adapters_` added.

    Raises:
        UserError: When nothing matches, the expression is not valid, or the head cannot
            be distinguished from the rest.
    """
    trainable = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() or parameter.is_complex()
    }
    if not trainable:
        raise UserError(f"{type(model).__name__} has no parameter that can be trained")
    body = getattr(model, "base_model_prefix", "blocks")
    chosen = _matcher(rf"^(?!{body}\.)" if trained == "head" else trained)
    parameters = {
        name: parameter for name, parameter in trainable.items() if chosen(name)
    }
    if trained == "head" and len(parameters) == len(trainable):
        raise UserError(
            f"argument trained must not be head for {type(model).__name__}, which has "
            f"no parameter below {body!r}; give a regular expression"
        )
    if not parameters and lora_rank(trained) is not None:
        raise UserError(
            f"argument trained is {trained!r}, and {type(model).__name__} has no "
            "adapters; call relearning.lora.add_adapters_ first"
        )
    if not parameters:
        names = list(trainable)
        raise UserError(
            f"argument trained must match a parameter, {trained!r} matches none of "
            f"{len(names)} ({names[0]} ... {names[-1]}); give head, "
            f"{', '.join(PARTS)}, layers:FIRST-LAST or a regular expression"
        )
    return parameters


def _matcher(trained: str) -> Callable[[str], bool]:
    if lora_rank(trained) is not None:
        return lambda name: ".lora_A." in name or ".lora_B." in name
    layers = _LAYERS.fullmatch(trained)
    if layers:
        first, last = int(layers[1]), int(layers[2] or layers[1])

        def in_layers(name: str) -> bool:
            number = _LAYER.search(name)
            return number is not None and first <= int(number[1]) <= last

        return in_layers
    try:
        pattern = re.compile(PARTS.get(trained, trained))
    except re.error as error:
        raise UserError(
            f"argument trained must be a regular expression, got {trained!r}: {error}"
        ) from error
    return lambda name: pattern.search(name) is not None
