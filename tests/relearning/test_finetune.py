"""Fine-tuning under a held mask: a step worked out by hand, and what is restored."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loading import LoadedModel
from circuitcut.models.sites import Site
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.finetune import finetune_, held_model
from circuitcut.relearning.holding import frozen_entries
from circuitcut.relearning.protocol import RelearnSettings, run_condition
from circuitcut.relearning.study import Findings, Study
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task
from circuitcut.training.fit_arguments import Checkpoints, Watch
from circuitcut.training.fit_settings import FitSettings

ADAMW = FitSettings(5, 0.05, "adamw", weight_decay=0.5)


class Affine(nn.Module):
    """A user's model: no config, no `base_model_prefix`, dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.25)
        self.outer = nn.Linear(3, 2)
        self.count = nn.Parameter(torch.tensor(7), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(self.norm(self.inner(x)).relu()))


def _mask(module: str, value: float = 0.0, kind: str = "mean") -> FrozenMask:
    """The second of three inputs of `module` is ablated."""
    site = Site("neurons", module, 0, 3)
    keep = {site.name: torch.tensor([True, False, True])}
    values = {site.name: torch.full((3,), value)}
    return FrozenMask(keep, (site,), AblationValues(kind, values))


def _loss(model: nn.Module, step: int) -> Tensor:
    rng = torch.Generator().manual_seed(step)
    return (model(torch.randn(8, 4, generator=rng)) - 1).square().mean()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _n_hooks(model: nn.Module) -> int:
    hooks = [m._forward_pre_hooks for m in model.modules()]
    hooks += [m._forward_hooks for m in model.modules()]
    hooks += [p._backward_hooks or {} for p in model.parameters()]
    return sum(map(len, hooks))


def _fit_held_(
    model: nn.Module, loss: Any, settings: FitSettings, **given: Any
) -> None:
    """`finetune_` as the protocol of relearning trains."""
    mask, watch = given["mask"], given["watch"]
    with held_model(model, mask, "all") as tuned:
        tuned.fit_(loss, settings, watch=watch)


@pytest.mark.parametrize("gradients_on", [True, False])
@pytest.mark.parametrize("train_", [finetune_, _fit_held_])
def test_one_step_is_the_one_worked_out_by_hand(
    gradients_on: bool, train_: Callable[..., None]
):
    """y = W x', x' = (1, -1, 2): the second input 5 is replaced by the value -1.

    y - t = (1, -2), dL/dW = (y - t) x'^T with a second column of 0 and the norm 5, so
    clipping to 2.5 halves it, and W <- W - (dL/dW / 2 + W / 2) / 2 elsewhere.
    """
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]))
    model.requires_grad_(gradients_on)
    x, target = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([4.0, -1.0])
    norms: list[float] = []
    train_(
        model,
        lambda model, step: (model(x) - target).square().sum() / 2,
        FitSettings(1, 0.5, "sgd", weight_decay=0.5, clip_norm=2.5),
        mask=_mask("0", -1.0),
        watch=Watch(on_log=lambda step, numbers: norms.append(numbers["grad_norm"])),
    )
    assert norms == [5.0]
    assert model[0].weight.tolist() == [[0.5, 2.0, 1.75], [0.5, 1.0, 0.25]]
    assert model[0].weight.requires_grad == gradients_on


def test_without_a_mask_the_steps_are_those_of_torch():
    ours, theirs = nn.Linear(4, 2), nn.Linear(4, 2)
    theirs.load_state_dict(ours.state_dict())
    finetune_(ours, _loss, ADAMW)
    oracle = torch.optim.AdamW(
        theirs.parameters(), lr=0.05, weight_decay=0.5, fused=True
    )
    for step in range(ADAMW.n_steps):
        oracle.zero_grad()
        _loss(theirs, step).backward()
        oracle.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
def test_the_mask_is_held_bit_for_bit_after_every_step(optimiser):
    model, mask = Affine(), _mask("outer", 0.3)
    ((weight, where),) = frozen_entries(model, mask)
    before, read, after = weight.detach().clone(), [], []
    hook = model.outer.register_forward_hook(
        lambda module, args, output: read.append(args[0].detach())
    )
    momentum = 0.9 if optimiser == "sgd" else 0.0
    settings = FitSettings(5, 0.05, optimiser, weight_decay=0.5, momentum=momentum)
    watch = Watch(after_step=lambda step: after.append(weight.detach().clone()))
    finetune_(model, _loss, settings, mask=mask, watch=watch)
    hook.remove()
    assert len(after) == len(read) == 5
    assert all((inputs[:, 1] == torch.tensor(0.3)).all() for inputs in read)
    assert not any((inputs[:, 0] == torch.tensor(0.3)).any() for inputs in read)
    for values in after:
        assert torch.equal(values[where], before[where])
        assert (values != before)[~where].all()


def test_the_cut_is_off_again_afterwards():
    """Planted: the output reads the ablated unit alone, with weight 1."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1.0, 0.0]).expand(2, 3))
    mask, seen = _mask("1", 0.25), []

    def loss(model: nn.Module, step: int) -> Tensor:
        output = model(torch.ones(1, 4).double())
        seen.append(output.detach())
        return output.sum()

    finetune_(model, loss, FitSettings(1, 0.1, "sgd"), mask=mask)
    assert (seen[0] == 0.25).all()
    assert _n_hooks(model) == 0
    x = torch.ones(1, 4).double()
    torch.testing.assert_close(model(x), model[0](x) @ model[1].weight.T)


def _fails(model: nn.Module, step: int) -> Tensor:
    if step == 2:
        raise RuntimeError("power cut")
    return _loss(model, step)


@pytest.mark.parametrize(("loss", "error"), [(_loss, None), (_fails, RuntimeError)])
def test_flags_modes_and_hooks_are_as_before_also_after_an_error(loss, error):
    model = Affine().train()
    model.norm.eval()
    model.inner.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    if error is None:
        finetune_(model, loss, ADAMW, mask=_mask("outer"))
    else:
        with pytest.raises(error, match="power cut"):
            finetune_(model, loss, ADAMW, mask=_mask("outer"))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert _n_hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_step_begins_in_training_mode():
    model, modes = Affine().eval(), []

    def loss(model: nn.Module, step: int) -> Tensor:
        modes.append({module.training for module in model.modules()})
        return _loss(model, step)

    finetune_(model, loss, ADAMW, watch=Watch(after_step=lambda step: model.eval()))
    assert modes == [{True}] * 5
    assert not any(module.training for module in model.modules())


def test_a_gradient_from_before_moves_nothing():
    fresh, used = nn.Linear(4, 2), nn.Linear(4, 2)
    used.load_state_dict(fresh.state_dict())
    used.weight.grad = torch.full((2, 4), 100.0)
    finetune_(fresh, _loss, ADAMW)
    finetune_(used, _loss, ADAMW)
    assert torch.equal(fresh.weight, used.weight)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    model, mask, at_step = Affine(), _mask("outer", 0.3), {}

    def loss(model: nn.Module, step: int) -> Tensor:
        return _loss(model, step) * (float("nan") if step == 3 else 1.0)

    def keep(step: int) -> None:
        at_step[step] = [p.detach().clone() for p in model.parameters()]

    with pytest.raises(UserError, match="the loss is not finite at step 3"):
        finetune_(model, loss, ADAMW, mask=mask, watch=Watch(after_step=keep))
    assert list(at_step) == [0, 1, 2]
    assert all(map(torch.equal, model.parameters(), at_step[2]))
    assert _n_hooks(model) == 0


@pytest.mark.parametrize(
    ("trained", "changed"),
    [
        ("all", {"inner", "norm", "outer"}),
        (r"^outer\.", {"outer"}),
        ("inner|norm", {"inner", "norm"}),
    ],
)
def test_only_what_is_named_trains(trained: str, changed: set[str]):
    """`all` suits a module with an integer parameter and no `base_model_prefix`."""
    model = Affine()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    finetune_(model, _loss, ADAMW, trained=trained)
    assert changed == {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


@pytest.mark.parametrize("n_steps", [2, 4])
def test_a_longer_run_continues_to_the_same_bits(n_steps: int, tmp_path: Path):
    whole, stopped, resumed = Affine(), Affine(), Affine()
    mask, n_seen = _mask("outer", 0.3), torch.zeros(())
    finetune_(whole, _loss, ADAMW, mask=mask)
    short = FitSettings(n_steps, 0.05, "adamw", weight_decay=0.5)
    watch = Watch(after_step=lambda step: n_seen.add_(8))
    saved = {"checkpoints": Checkpoints(tmp_path), "buffers": {"n_seen": n_seen}}
    finetune_(stopped, _loss, short, mask=mask, watch=watch, **saved)
    n_seen.zero_()
    saved["checkpoints"] = Checkpoints(tmp_path, resume=True)
    finetune_(resumed, _loss, ADAMW, mask=mask, watch=watch, **saved)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert n_seen == 5 * 8


def test_relearning_trains_by_the_same_steps(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    chosen = RelearnSettings(
        n_steps=7, batch_size=6, lr=0.02, weight_decay=0.1, n_evaluations=2
    )
    models: list[nn.Module] = []

    def at_end(condition: Condition, model: nn.Module, held: FrozenMask | None) -> dict:
        models.append(model)
        return {}

    condition = Condition("cut", "lasting", 3)
    study = Study(task, loaded, mask, chosen)
    run_condition(study, condition, tmp_path, findings=Findings(at_end))
    model = copy.deepcopy(loaded.model)

    def loss(model: nn.Module, step: int) -> Tensor:
        batch = task.finetune_batch("relearn", step, size=6, seed=3)
        return task.finetune_loss(model, batch)

    settings = FitSettings(7, 0.02, "adamw", weight_decay=0.1, clip_norm=1.0, seed=3)
    finetune_(model, loss, settings, mask=mask)
    assert all(map(torch.equal, model.parameters(), models[0].parameters()))
    assert not torch.equal(model.output.weight, loaded.model.output.weight)


def test_relearning_clips_the_gradient_without_the_held_entries(
    task: Task, loaded: LoadedModel, mask: FrozenMask, tmp_path: Path
):
    """The norm, and the step of SGD that it scales, against autograd of torch."""
    ((site, _),) = mask.keep.items()
    mean = AblationValues("mean", {site: torch.full((12,), 0.7)})
    mask = replace(mask, ablated=mean)
    model = copy.deepcopy(loaded.model).requires_grad_(True)
    batch = task.finetune_batch("relearn", 0, size=6, seed=3)
    with mask.applied(model):
        task.finetune_loss(model, batch).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    ((weight, where),) = frozen_entries(model, mask)
    held = torch.zeros_like(weight.grad).masked_scatter(where, weight.grad[where])
    assert held.norm() > 0.1  # what must not count
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        if parameter is weight:
            gradient -= held
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    expected = [
        p.detach() - 0.5 * g / 2  # lr 0.5, clipped to half its norm
        for p, g in zip(model.parameters(), gradients, strict=True)
    ]
    norms: list[float] = []
    models: list[nn.Module] = []

    def at_end(condition: Condition, model: nn.Module, held: FrozenMask | None) -> dict:
        models.append(model)
        return {}

    chosen = RelearnSettings(
        n_steps=1,
        batch_size=6,
        lr=0.5,
        optimiser="sgd",
        weight_decay=0.0,
        clip_norm=norm / 2,
        n_evaluations=1,
    )
    run_condition(
        Study(task, loaded, mask, chosen),
        Condition("cut", "lasting", 3),
        tmp_path,
        findings=Findings(at_end, lambda _, step, log: norms.append(log["grad_norm"])),
    )
    assert norms == pytest.approx([norm])
    torch.testing.assert_close(list(models[0].parameters()), expected)


Refused = tuple[Callable[[], nn.Module], dict, str]
CASES: dict[str, Refused] = {
    "counterfactual values": (
        Affine,
        {"mask": _mask("outer", kind="counterfactual")},
        "counterfactual ablation values cannot be held",
    ),
    "no match": (Affine, {"trained": "layers:4"}, "trained must match a parameter"),
    "no head": (Affine, {"trained": "head"}, "trained must not be head for Affine"),
    "no parameters": (nn.ReLU, {}, "ReLU has no parameter that can be trained"),
    "no scalar": (
        Affine,
        {"loss": lambda model, step: model(torch.ones(2, 4))},
        r"loss must return a scalar, got shape \(2, 2\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_refused_and_changes_nothing(case: str):
    make, given, message = CASES[case]
    model = make().eval()
    before = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    with pytest.raises(UserError, match=message):
        finetune_(model, settings=ADAMW, **{"loss": _loss} | given)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert _n_hooks(model) == 0
