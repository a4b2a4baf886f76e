"""Gates on a GPU: gradients, noise and scores of the CPU, bfloat16, the same bits."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues, mean_values, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GATES, GateSettings
from circuitcut.models.architectures import sites_of
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.sites import Site
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.tasks.toxicity_sampling import sample_continuations
from circuitcut.training.fit_arguments import Checkpoints, Watch
from circuitcut.training.fit_settings import FitSettings
from circuitcut.training.loop import fit
from tests.models.tiny import exact_norms, tiny_inputs, tiny_model

HEADS = {"gpt2": "causal_lm", "llama": "causal_lm", "bert": "token_classification"}
N_STEPS = 8


def loss_of(model: Any) -> Tensor:
    """A loss of every logit at real tokens, on the model's device."""
    where = next(model.parameters()).device
    inputs = {name: value.to(where) for name, value in tiny_inputs(model).items()}
    logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    weights = torch.linspace(-1, 1, logits.numel()).to(logits)
    return (logits.flatten().tanh() * weights).sum()


def values_of(model: Any, sites: tuple[Site, ...], kind: str) -> AblationValues:
    """Ablation values of a model on the CPU."""
    if kind == "zero":
        return zero_values(sites)
    inputs = tiny_inputs(model)
    return mean_values(model, sites, [(inputs, inputs["attention_mask"].bool())])


def gradients(
    model: Any, sites: tuple[Site, ...], ablated: AblationValues, special_ids: Any = ()
) -> list[Tensor]:
    """The loss, and the derivative of every gate, float64 on the CPU."""
    where = next(model.parameters())
    rng = torch.Generator().manual_seed(1)
    keep = {
        site.name: torch.rand(site.n_units, generator=rng)
        .to(where.device, torch.promote_types(where.dtype, torch.float32))
        .requires_grad_()
        for site in sites
    }
    with gated(model, sites, keep, ablated, special_ids=special_ids):
        loss = loss_of(model)
    found = torch.autograd.grad(loss, list(keep.values()))
    return [value.detach().double().cpu() for value in (loss, *found)]


@pytest.mark.parametrize("special_ids", [(), (5, FIRST_POSITION)])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("units", MODULE_KINDS)
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_of_gates_are_those_of_the_cpu(
    kind: str,
    units: str,
    ablation: str,
    special_ids: tuple[int, ...],
    device: torch.device,
):
    model = tiny_model(kind, HEADS[kind]).double().requires_grad_(False)
    sites = sites_of(model, [units])
    ablated = values_of(model, sites, ablation)
    with exact_norms(model):
        expected = gradients(model, sites, ablated, special_ids)
        found = gradients(model.to(device), sites, ablated, special_ids)
    assert max(value.abs().max() for value in expected[1:]) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("units", MODULE_KINDS)
@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_gradients_point_where_those_of_float32_do(
    kind: str, units: str, device: torch.device
):
    model = tiny_model(kind, HEADS[kind]).requires_grad_(False)
    sites = sites_of(model, [units])
    ablated = values_of(model, sites, "mean")
    model.to(device)
    exact = torch.cat([g.flatten() for g in gradients(model, sites, ablated)[1:]])
    half = gradients(model.bfloat16(), sites, ablated)[1:]
    rounded = torch.cat([g.flatten() for g in half])
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.95
    assert rounded.norm() / exact.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gate", GATES)
def test_the_noise_of_the_gates_is_that_of_the_cpu(gate: str, device: torch.device):
    sites = (Site("neurons", "a", 0, 700), Site("heads", "b", 1, 12, 4))
    samples = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(len(samples))  # no global generator is read
        masks = MaskSet(sites, gate, GateSettings(k_min=20.0, k_max=100.0)).to(where)
        rng = torch.Generator().manual_seed(2)
        samples.append([masks.sample(rng) for _ in range(3)])
    for expected, found in zip(*samples, strict=True):
        for name, value in found.items():
            assert value.device.type == device.type
            torch.testing.assert_close(
                value.cpu(), expected[name], rtol=1e-4, atol=1e-5
            )


class Training:
    """Hard-concrete gates on a small decoder in training, dropout on."""

    def __init__(self, device: torch.device):
        self.model = tiny_model("gpt2", "causal_lm").requires_grad_(False)
        self.sites = sites_of(self.model, ["neurons", "heads"])
        settings = GateSettings(k_min=5.0, k_max=40.0)
        self.masks = MaskSet(self.sites, "hard_concrete", settings).to(device)
        self.ablated = values_of(self.model, self.sites, "mean")
        self.model.to(device)
        self.stop_at: int | None = None

    def step_loss(
        self, step: int, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if step == self.stop_at:
            raise RuntimeError("power cut")
        self.model.train()
        keep = self.masks.sample(rng)
        with gated(self.model, self.sites, keep, self.ablated, special_ids=(5,)):
            return loss_of(self.model), {}

    def fit(self, folder: Path | None = None, *, resume: bool = False) -> list[Tensor]:
        fit(
            dict(self.masks.named_parameters()),
            self.step_loss,
            FitSettings(N_STEPS, 0.1, "adam", checkpoint_every=3),
            watch=Watch(),
            checkpoints=Checkpoints(folder, resume),
        )
        return [p.detach().cpu().clone() for p in self.masks.parameters()]


@pytest.fixture
def deterministic():
    """Deterministic algorithms alone; an operation without one raises an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(
    device: torch.device, tmp_path: Path
):
    whole = Training(device).fit()
    first = Training(device)
    first.stop_at = 7
    with pytest.raises(RuntimeError, match="power cut"):
        first.fit(tmp_path)
    resumed = Training(device).fit(tmp_path, resume=True)
    assert all(map(torch.equal, resumed, whole))


@pytest.mark.usefixtures("deterministic")
def test_two_trainings_have_the_same_bits(device: torch.device):
    first, second = Training(device).fit(), Training(device).fit()
    assert all(map(torch.equal, first, second))
    assert first[0].std() > 0  # the gates have moved apart


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_cut_model_writes_the_text_of_the_cpu(kind: str, device: torch.device):
    model = tiny_model(kind, "causal_lm").double().requires_grad_(False)
    sites = sites_of(model, ["neurons"])
    mask = FrozenMask.random(
        sites,
        values_of(model, sites, "mean"),
        n_ablated=40,
        special_ids=(5, FIRST_POSITION),
        seed=0,
    )
    arguments: dict[str, Any] = {"end_id": 3, "banned_ids": [0], "seed": 1}
    texts = []
    for where in ("cpu", device):
        with mask.applied(model.to(where)):
            texts.append(sample_continuations(model, [[2, 9], [2, 8]], **arguments))
    assert texts[0] == texts[1]


def test_a_mask_leaves_the_weights_on_the_device_as_they_were(device: torch.device):
    model: nn.Module = tiny_model("llama", "causal_lm").requires_grad_(False)
    model.to(device)
    before = deepcopy(model.state_dict())
    sites = sites_of(model, ["weights", "heads"])
    gradients(model, sites, zero_values(sites))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
