"""Gates trained on a task: breaking, necessary and covering by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import examples_to_run, train_gates
from circuitcut.experiments.plan import circuit_ablated
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.module_sites import module_site
from tests.attribution.toy import N_TOKENS, ToyTask

CARRIERS, SHARED = (0, 1, 2), 3
N_HIDDEN = 16


class Shared(nn.Module):
    """Logits of the concept's answer (0) and of the other answer (1).

    Margin of 0 over 1 in nats: at tokens of the concept the three carriers give 2 each,
    the shared unit 3, and -4 stands beside all units: 5 in all. At other tokens the
    shared unit gives -6, and 1 stands beside it: -5. The other units are never on.
    """

    def __init__(self) -> None:
        super().__init__()
        is_concept = torch.arange(N_TOKENS) >= ToyTask().first_concept
        hidden = torch.zeros(N_TOKENS, N_HIDDEN)
        hidden[is_concept, : len(CARRIERS)] = 2.0
        hidden[:, SHARED] = torch.where(is_concept, 3.0, -6.0)
        self.hidden = nn.Embedding.from_pretrained(hidden)
        beside = torch.where(is_concept, -4.0, 1.0)
        self.beside = nn.Embedding.from_pretrained(beside[:, None])
        self.out = nn.Linear(N_HIDDEN, 1, bias=False).requires_grad_(False)
        self.out.weight.fill_(1.0)

    def forward(self, input_ids: Tensor) -> Any:
        margin = self.out(self.hidden(input_ids)) + self.beside(input_ids)
        return SimpleNamespace(logits=torch.cat([margin, torch.zeros_like(margin)], -1))


@pytest.mark.parametrize("gate", ["clamped", "hard_concrete"])
@pytest.mark.parametrize(
    ("retained", "expected"), [("kl", [*CARRIERS]), ("none", [*CARRIERS, SHARED])]
)
def test_breaking_keeps_what_the_rest_needs_and_necessary_ablates_it_too(
    gate: str, retained: Any, expected: list[int]
):
    """To cut the shared unit brings the concept 3 nats and costs the rest 8 * 1.3."""
    assert ablated_units(gate, retained) == expected


@pytest.mark.parametrize("gate", ["clamped", "hard_concrete"])
@pytest.mark.parametrize("direction", ["isolate", "break"])
def test_covering_ablates_units_of_a_known_circuit_alone(gate: str, direction: str):
    """The circuit lacks the last carrier, and holds a unit that is never on."""
    of_circuit = torch.zeros(N_HIDDEN, dtype=torch.bool)
    of_circuit[[*CARRIERS[:-1], SHARED, 5]] = True
    site = module_site(Shared(), "out")
    known = FrozenMask(
        {site.name: of_circuit if direction == "isolate" else ~of_circuit},
        (site,),
        zero_values([site]),
        provenance={"direction": direction},
    )
    found = ablated_units(gate, "kl", circuit_ablated(known))
    assert found == list(CARRIERS[:-1])
    # with nothing retained, the shared unit too; never the carrier beside the circuit
    found = ablated_units(gate, "none", circuit_ablated(known))
    assert found == [*CARRIERS[:-1], SHARED]


def ablated_units(
    gate: str, retained: Any, superset: FrozenMask | None = None
) -> list[int]:
    """Hidden units that a mask with a price ablates."""
    model, task = Shared(), ToyTask()
    loaded = SimpleNamespace(model=model, special_ids=())
    experiment: Any = SimpleNamespace(
        task=task, loaded=loaded, accelerator=Accelerator(cpu=True)
    )
    sites, quiet = [module_site(model, "out")], GateWatch(progress=None)
    ablated = zero_values(sites)
    settings = MaskSettings(
        gate=gate,
        penalty="price",
        price=0.05,
        retain_objective=retained,
        margin_floor=4.0,
        n_steps=150,
    )
    masks = train_gates(
        experiment, sites, ablated, settings, superset=superset, watch=quiet
    )
    (keep,) = FrozenMask.from_threshold(masks, ablated).keep.values()
    found: list[int] = (~keep).nonzero().flatten().tolist()
    return found


def test_nothing_retained_runs_the_examples_of_the_concept_alone():
    batch = {
        "ids": torch.arange(8).view(4, 2),
        "concept": torch.tensor([[0, 0], [0, 1], [0, 0], [1, 1]]).bool(),
        "retain": torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]).bool(),
    }
    assert examples_to_run(batch, MaskSettings()) is batch
    nothing = MaskSettings(retain_objective="none")
    run = examples_to_run(batch, nothing)
    assert run["ids"].tolist() == [[2, 3], [6, 7]]
    assert run["concept"].tolist() == [[False, True], [True, True]]
    assert not run["retain"].any()
    without = batch | {"concept": torch.zeros(4, 2).bool()}
    assert examples_to_run(without, nothing)["ids"].tolist() == [[0, 1]]
