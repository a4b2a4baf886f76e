"""Mean difference of activations between concept and retained positions.

O. Antverg and Y. Belinkov (2022), "On the Pitfalls of Analyzing Individual Neurons in
Language Models", https://arxiv.org/abs/2110.07483: with two labels the score of a unit
is the absolute difference of its means. It needs no gradient. It measures what a unit
encodes, not what the model uses. Departures: the scores of heads (norm of the
difference vector) and of weights are ours.
"""

from collections.abc import Iterator

from jaxtyping import Bool
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.ablation import means_at
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.lengths import parts_by_length


def probeless(subject: Subject) -> Scores:
    """Absolute difference of means, in the units of the activation.

    The score of a head is the Euclidean norm of its difference vector. The score of a
    weight is the absolute difference of the means of weight times input.

    Raises:
        UserError: When the batches have no concept or no retained position.
    """
    with evaluating(subject.model):
        concept, retain = means_at(
            subject.model, subject.sites, _marked(subject), n_sets=2
        )
    return {
        site.name: _score(
            subject.model.get_submodule(site.module),
            site,
            concept[site.name] - retain[site.name],
        )
        for site in subject.sites
    }


def _marked(
    subject: Subject,
) -> Iterator[tuple[dict[str, Tensor], list[Bool[Tensor, "*position"]]]]:
    """Inputs, and positions of the concept and retained ones."""
    for batch in subject.batches():
        for rows in parts_by_length(batch):
            sides = [
                rows[side] & subject.cuttable(rows) for side in ("concept", "retain")
            ]
            yield subject.task.inputs(rows), sides


def _score(module: nn.Module, site: Site, difference: Tensor) -> Tensor:
    difference = difference.double().cpu()
    if site.kind != "weights":
        return difference.view(site.n_units, site.unit_size).norm(dim=1)
    weight: Tensor = module.get_parameter("weight").detach().double().cpu()
    # Conv1D stores (input, output), Linear (output, input).
    inputs = difference.unsqueeze(1) if isinstance(module, Conv1D) else difference
    return (weight * inputs).abs().flatten()
