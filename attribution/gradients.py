"""Gradient x activation: first-order effect of each unit on the concept.

All scores are in nats per concept position: the estimated decrease of the concept's
margin or log likelihood when only this unit is ablated.
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
    """Estimated increase of the concept's cross-entropy: -(a - a0) dL/da."""
    return gate_gradients(subject, concept_likelihood)


def gradient_margin(subject: Subject) -> Scores:
    """Estimated decrease of the concept's margin: (a - a0) dm/da."""
    return gate_gradients(subject, concept_margin)


def gradient_margin_over_retain(subject: Subject) -> Scores:
    """`gradient_margin` divided by the fourth root of `retain_sensitivity`."""
    margins = gate_gradients(subject, concept_margin)
    sensitivity = retain_sensitivity(subject)
    return {
        name: value / sensitivity[name] ** SENSITIVITY_POWER
        for name, value in margins.items()
    }
