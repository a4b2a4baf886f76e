"""Masks on a model of one's own: what is planted is found, and the model stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.learn_mask import learn_mask
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import record_values
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES
from circuitcut.models.architectures import sites_of
from circuitcut.models.module_sites import module_site
from circuitcut.storage.errors import UserError
from circuitcut.training.fit_arguments import Checkpoints
from tests.models.tiny import tiny_inputs, tiny_model

QUIET = GateWatch(progress=None)
CARRIERS = (3, 17)
"""Hidden units of the planted network that alone carry the concept."""
FEW = MaskSettings(k_min=1.0, k_max=8.0, n_steps=60, lr=0.3)


class Planted(nn.Module):
    """Output 0 reads the hidden units `CARRIERS` alone, output 1 all others."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.out = nn.Linear(32, 2, bias=False)
        with torch.no_grad():
            self.blocks[0].weight.copy_(torch.rand(32, 12, generator=rng(1)))
            self.blocks[0].bias.zero_()
            self.out.weight.fill_(1.0)
            self.out.weight[1, list(CARRIERS)] = 0.0
            self.out.weight[0] = 0.0
            self.out.weight[0, list(CARRIERS)] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x))


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
    """The concept is output 0, to be brought to zero; output 1 stays as it is."""
    x = torch.rand(16, 12, generator=rng(step))
    concept, retain = model(x).unbind(-1)
    with torch.no_grad():
        hidden = model.blocks(x)
        expected = hidden.sum(-1) - hidden[:, list(CARRIERS)].sum(-1)
    return concept.square().mean(), ((retain - expected) ** 2).mean()


@pytest.mark.parametrize("gate", sorted(GATES))
def test_every_gate_finds_the_units_that_carry_the_concept(gate: str):
    model = Planted()
    settings = MaskSettings(
        gate=gate, penalty="price", price=1e-3, k_max=8.0, n_steps=120, lr=0.2
    )
    site = module_site(model, "out")
    learned = learn_mask(model, [site], planted_loss, settings, watch=QUIET)
    mask = learned.freeze(n_ablated=2)
    assert (~mask.keep[site.name]).nonzero().flatten().tolist() == list(CARRIERS)
    if GATES[gate].has_threshold(settings):
        assert (~learned.freeze().keep[site.name])[list(CARRIERS)].all()
    else:
        with pytest.raises(UserError, match="give n_ablated"):
            learned.freeze()


def test_clamped_gates_are_rounded_every_so_many_steps_and_find_the_carriers():
    rounded: dict[int, bool] = {}

    def on_step(step: int, masks: MaskSet) -> None:
        values = masks.gate.values()
        rounded[step] = bool(((values == 0) | (values == 1)).all())

    settings = MaskSettings(
        gate="clamped",
        penalty="price",
        price=0.02,
        price_start=0.2,
        ramp=0.8,
        round_every=40,
        n_steps=120,
        lr=0.02,
        lr_schedule="constant",
    )
    model = Planted()
    site = module_site(model, "out")
    watch = GateWatch(on_step=on_step, progress=None)
    learned = learn_mask(model, [site], planted_loss, settings, watch=watch)
    assert all(rounded[step] for step in (39, 79, 119))
    assert not rounded[38]
    ablated = (~learned.freeze().keep[site.name]).nonzero().flatten().tolist()
    assert ablated == list(CARRIERS)


def test_isolating_keeps_the_units_that_carry_the_concept():
    model = Planted()

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(16, 12, generator=rng(step))
        carried = model.blocks(x)[:, list(CARRIERS)].sum(-1)
        return (model(x)[:, 0] - carried).square().mean(), torch.zeros(())

    settings = MaskSettings(
        direction="isolate", k_min=2.0, k_max=8.0, n_steps=120, lr=0.2
    )
    site = module_site(model, "out")
    learned = learn_mask(model, [site], loss, settings, watch=QUIET)
    mask = learned.freeze(n_ablated=30)
    assert mask.keep[site.name].nonzero().flatten().tolist() == list(CARRIERS)
    assert mask.provenance["direction"] == "isolate"


def test_a_killed_training_continues_to_the_same_bits(tmp_path: Path):
    site = module_site(Planted(), "out")

    def learned(loss: Any, checkpoints: Checkpoints) -> dict[str, Tensor]:
        settings = MaskSettings(
            gate="hard_concrete", penalty="price", n_steps=30, checkpoint_every=10
        )
        return learn_mask(
            Planted(), [site], loss, settings, checkpoints=checkpoints, watch=QUIET
        ).ranking

    def killed(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        if step == 23:
            raise RuntimeError("killed")
        return planted_loss(model, step)

    whole = learned(planted_loss, Checkpoints())
    with pytest.raises(RuntimeError, match="killed"):
        learned(killed, Checkpoints(tmp_path / "c"))
    resumed = learned(planted_loss, Checkpoints(tmp_path / "c", resume=True))
    assert torch.equal(whole[site.name], resumed[site.name])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("units", [["neurons", "heads"], ["edges"]])
def test_families_of_the_table_are_gated_alike(kind: str, units: list[str]):
    head = "token_classification" if kind == "bert" else "causal_lm"
    model = tiny_model(kind, head)
    inputs, sites = tiny_inputs(model), sites_of(model, units)
    before = {name: weight.clone() for name, weight in model.named_parameters()}

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        logits = model(**inputs).logits
        return logits[..., 0].mean(), logits.new_zeros(())

    with torch.no_grad():
        plain = model(**inputs).logits
    learned = learn_mask(model, sites, loss, FEW, watch=QUIET)
    mask = learned.freeze(n_ablated=3)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)
        with mask.applied(model):
            cut = model(**inputs).logits
    assert cut[..., 0].mean() < plain[..., 0].mean()
    assert all(torch.equal(before[n], w) for n, w in model.named_parameters())
    assert all(weight.requires_grad for weight in model.parameters())


def test_values_of_each_batch_replace_what_is_ablated():
    model = Planted()
    site = module_site(model, "out")
    asked: list[int] = []

    def values(step: int) -> Any:
        asked.append(step)
        x = torch.rand(16, 12, generator=rng(1000 + step))
        return record_values(model, [site], {"x": x})

    learned = learn_mask(model, [site], planted_loss, FEW, ablated=values, watch=QUIET)
    assert asked == list(range(FEW.n_steps))
    assert learned.freeze(n_ablated=2).ablated.kind == "counterfactual"


def test_after_an_exception_the_model_is_as_it_was():
    model = Planted().train()
    model.out.weight.requires_grad_(False)

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        assert not any(weight.requires_grad for weight in model.parameters())
        assert not model.training
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        learn_mask(model, [module_site(model, "out")], loss, FEW, watch=QUIET)
    assert model.training
    flags = {name: w.requires_grad for name, w in model.named_parameters()}
    assert flags == {
        "blocks.0.weight": True,
        "blocks.0.bias": True,
        "out.weight": False,
    }
    assert not model.out._forward_pre_hooks


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(()), "a tensor of shape"),
        ((torch.zeros(()), torch.zeros(3)), r"shape \(3,\)"),
        ((torch.zeros(()), 0.0), "float"),
        (None, "NoneType"),
    ],
)
def test_a_loss_that_is_no_pair_of_scalars_is_refused(returned: Any, message: str):
    model = Planted()
    with pytest.raises(UserError, match=message):
        learn_mask(
            model, [module_site(model, "out")], lambda *_: returned, FEW, watch=QUIET
        )


def test_a_loss_that_is_not_a_number_stops_before_the_step(tmp_path: Path):
    model = Planted()
    site = module_site(model, "out")

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        concept, retain = planted_loss(model, step)
        return (concept * float("nan") if step == 5 else concept), retain

    with pytest.raises(UserError, match="not finite at step 5"):
        learn_mask(model, [site], loss, FEW, watch=QUIET)


def test_the_range_of_k_is_made_to_fit_a_small_network():
    model = nn.Sequential(nn.Linear(4, 4))

    def loss(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        output = model(torch.ones(2, 4))
        return output.square().mean(), output.mean()

    settings = MaskSettings(n_steps=3)  # k up to 64 of four units
    learned = learn_mask(model, [module_site(model, "0")], loss, settings, watch=QUIET)
    assert learned.settings.k_max == 2.0
    assert learned.freeze(n_ablated=1).n_units == 4
