"""Gradient x activation: which units the concept rests on, to first order.

All scores are in nats per concept position: the estimated fall of the concept when the
unit alone is ablated.
"""

from circuitcut.attribution.gate_gradients import (
    concept_likelihood,
    concept_margin,
    gate_gradients,
)
from circuitcut.attribution.retain_sensitivity import retain_sensitivity
from circuitcut.attribution.subject import Scores, Subject

SENSITIVITY_POWER = 0.25


def gradient_concept_loss(subject: Subject) -> Scores:
    """Estimated rise of the concept's cross-entropy: -(a - a0) dL/da."""
    return gate_gradients(subject, concept_likelihood)


def gradient_margin(subject: Subject) -> Scores:
    """Estimated fall of the concept's margin: (a - a0) dm/da."""
    return gate_gradients(subject, concept_margin)


def gradient_margin_over_retain(subject: Subject) -> Scores:
    """The fall of the margin over the fourth root of what the rest would suffer."""
    margins = gate_gradients(subject, concept_margin)
    sensitivity = retain_sensitivity(subject)
    return {
        name: value / sensitivity[name] ** SENSITIVITY_POWER
        for name, value in margins.items()
    }
