"""What is minimised: losses of the concept's answers and of everything retained.

All are weighted averages over counted positions, in nats, small where the mask does
what it should. An average over no positions is a zero that has a gradient, of zero.
The ascent is that of Li, Davies & Nadeau (2023), "Circuit Breaking: Removing Model
Behaviors with Targeted Ablation", https://arxiv.org/abs/2309.05973. Departures: the
loss of each position is capped, and a hinge on the margin stands beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from circuitcut.storage.errors import UserError

Logits = Float[Tensor, "position classes"]
Classes = Int[Tensor, "position concept"]
Rivals = Int[Tensor, "position rival"] | None
PerPosition = Float[Tensor, "position"]
Scalar = Float[Tensor, ""]


def margin(logits: Logits, concept_classes: Classes, rivals: Rivals) -> PerPosition:
    """logsumexp(concept logits) - logsumexp(rival logits), in nats.

    It is the log odds of the concept's answer: above zero the model gives it.

    Args:
        concept_classes: The classes that make the answer, distinct within a row.
        rivals: The classes it competes with; None means every other class.

    Raises:
        UserError: When no class is left that is not the concept's.
    """
    answer = logits.gather(1, concept_classes).logsumexp(1)
    if rivals is not None:
        return answer - logits.gather(1, rivals).logsumexp(1)
    if concept_classes.shape[1] >= logits.shape[1]:
        raise UserError(
            "the concept must leave a class to compete with, got "
            f"{concept_classes.shape[1]} of {logits.shape[1]} classes; choose another"
        )
    other_classes = logits.scatter(1, concept_classes, -torch.inf)
    return answer - other_classes.logsumexp(1)


def margin_hinge(
    logits: Logits,
    concept_classes: Classes,
    rivals: Rivals,
    weights: PerPosition,
    floor: float = 1.0,
) -> Scalar:
    """Mean of max(0, margin + floor): zero once the answer is `floor` nats behind."""
    behind = margin(logits, concept_classes, rivals) + floor
    return _mean(behind.relu(), weights)


def bounded_ascent(
    logits: Logits, targets: Int[Tensor, "position"], weights: PerPosition, cap: float
) -> Scalar:
    """-mean of min(cross-entropy, cap): ascends each position up to `cap` nats."""
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return -_mean(losses.clamp(max=cap), weights)


def uniform_target(
    logits: Logits, concept_classes: Classes, rivals: Rivals, weights: PerPosition
) -> Scalar:
    """Mean KL(uniform || p), p renormalised over the concept's classes and the rivals.

    Zero where those logits are equal: the model cannot tell the answers apart. Without
    rivals all classes take part.
    """
    if rivals is not None:
        logits = logits.gather(1, torch.cat([concept_classes, rivals], dim=1))
    log_p = logits.log_softmax(1)
    n_classes = torch.tensor(float(logits.shape[1]), dtype=log_p.dtype)
    return _mean(-log_p.mean(1) - n_classes.log().to(log_p.device), weights)


def kl_to_reference(
    logits: Logits,
    reference_logits: Logits,
    weights: PerPosition,
) -> Scalar:
    """Mean KL(reference || p); the reference gets no gradient."""
    log_p, log_reference = (
        logits.log_softmax(1),
        reference_logits.detach().log_softmax(1),
    )
    divergence = functional.kl_div(
        log_p, log_reference, reduction="none", log_target=True
    )
    return _mean(divergence.sum(1), weights)


def jensen_shannon(
    logits: Logits, reference_logits: Logits, weights: PerPosition
) -> Scalar:
    """Mean Jensen-Shannon divergence from the reference, which gets no gradient.

    (KL(r || m) + KL(p || m)) / 2 with m = (r + p) / 2: at most ln 2 nats a position
    (Lin 1991, "Divergence measures based on the Shannon entropy"). The loss
    of a wrong position is bounded, so no unit is kept only to make it less wrong.
    """
    log_p = logits.log_softmax(1)
    log_reference = reference_logits.detach().log_softmax(1)
    log_mean = torch.logaddexp(log_p, log_reference) - math.log(2)
    both = torch.stack([log_p, log_reference])
    divergences = functional.kl_div(
        log_mean.expand_as(both), both, reduction="none", log_target=True
    )
    return _mean(divergences.sum(2).mean(0), weights)


def cross_entropy(
    logits: Logits, targets: Int[Tensor, "position"], weights: PerPosition
) -> Scalar:
    """Mean negative log probability of the targets."""
    return _mean(functional.cross_entropy(logits, targets, reduction="none"), weights)


@runtime_checkable
class Answers(Protocol):
    """Logits at counted positions and what is right there: the tasks' `Predictions`."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def concept_classes(self) -> Tensor: ...
    @property
    def rivals(self) -> Tensor | None: ...
    @property
    def weights(self) -> Tensor: ...


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of all objectives; each reads those that it needs."""

    floor: float = 1.0
    """Margin: nats by which the answer shall fall behind its rivals."""
    cap: float = 2.0
    """Ascent: nats of a position's loss that count."""


Objective = Callable[[Answers, Tensor | None, ObjectiveSettings], Tensor]
"""(answers, the uncut model's logits at the same positions, settings) -> scalar."""


def _from_uncut(name: str, divergence: Callable[..., Tensor]) -> Objective:
    """A divergence from the uncut model, whose logits must be given."""

    def objective(
        answers: Answers, reference: Tensor | None, settings: ObjectiveSettings
    ) -> Tensor:
        if reference is None:
            raise UserError(
                f"objective {name!r} needs the uncut model's logits, got none"
            )
        return divergence(answers.logits, reference, answers.weights)

    return objective


_kl = _from_uncut("kl", kl_to_reference)
_js = _from_uncut("js", jensen_shannon)

CONCEPT_OBJECTIVES: dict[str, Objective] = {
    "margin": lambda a, _, s: margin_hinge(
        a.logits, a.concept_classes, a.rivals, a.weights, s.floor
    ),
    "ascent": lambda a, _, s: bounded_ascent(a.logits, a.targets, a.weights, s.cap),
    "uniform": lambda a, _, s: uniform_target(
        a.logits, a.concept_classes, a.rivals, a.weights
    ),
    "kl": _kl,
    "js": _js,
    "cross_entropy": lambda a, _, s: cross_entropy(a.logits, a.targets, a.weights),
}
"""The first three drive the concept out (break), the other three keep it (isolate)."""

RETAIN_OBJECTIVES: dict[str, Objective] = {
    "kl": _kl,
    "cross_entropy": lambda a, _, s: cross_entropy(a.logits, a.targets, a.weights),
}


def _mean(values: PerPosition, weights: PerPosition) -> Scalar:
    weights = weights.to(values.dtype)
    total = weights.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return (values * weights).sum() / total
