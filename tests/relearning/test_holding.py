"""A lasting cut, bit for bit: values that enter projections and the weights behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.mlp import Mlp
from circuitcut.models.sites import Site
from circuitcut.relearning.holding import check_holdable, frozen_entries, held
from circuitcut.storage.errors import UserError

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2}
IDS = torch.tensor([[0, 4, 5, 6, 7], [0, 9, 8, 7, 6]])


def _bert() -> nn.Module:
    config = BertConfig(
        **SMALL, num_attention_heads=4, intermediate_size=24, num_labels=5
    )
    return BertForTokenClassification(config)


def _gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_positions=8)
    return GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    config = LlamaConfig(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
    )
    return LlamaForCausalLM(config)


def _mlp() -> nn.Module:
    return Mlp(6, 8, 3)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mlp": _mlp,
}
OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}


def _inputs(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, Mlp):
        return {"pixels": torch.linspace(-1, 1, 24).view(4, 6)}
    return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def _mask(
    model: nn.Module, units: list[str], *, mean: bool = False, special: bool = False
) -> FrozenMask:
    """Every third unit ablated."""
    sites = sites_of(model, units)
    keep = {site.name: torch.arange(site.n_units) % 3 != 1 for site in sites}
    ablated = zero_values(sites)
    if mean:
        widths = {site.name: _value_width(model, site) for site in sites}
        values = {name: torch.linspace(-2, 2, width) for name, width in widths.items()}
        ablated = AblationValues("mean", values)
    return FrozenMask(keep, sites, ablated, special_ids=(0,) if special else ())


def _value_width(model: nn.Module, site: Site) -> int:
    """Width of an ablation value; for weights it is the module's input."""
    if site.kind != "weights":
        return site.width
    widths: list[int] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        widths.append(args[0].shape[-1])

    hook = model.get_submodule(site.module).register_forward_pre_hook(record)
    with torch.no_grad():
        model(**_inputs(model))
    hook.remove()
    return widths[0]


def _train(
    model: nn.Module, mask: FrozenMask, optimiser: str, n_steps: int = 4
) -> None:
    moving = OPTIMISERS[optimiser](list(model.parameters()))
    with held(model, mask) as frozen:
        for _ in range(n_steps):
            model(**_inputs(model)).logits.square().mean().backward()
            moving.step()
            moving.zero_grad()
            for entry in frozen:
                entry.restore_()


CASES = [
    (name, units)
    for name in MODELS
    for units in (["neurons"], ["heads"], ["weights"], ["neurons", "heads"])
    if not (name == "mlp" and "heads" in units)
]


@pytest.mark.parametrize(
    ("name", "units", "optimiser"),
    [(*case, "adamw") for case in CASES]
    + [("gpt2", ["neurons", "heads"], other) for other in ("adam", "momentum")],
)
def test_weights_behind_ablated_units_keep_every_bit_and_others_train(
    name: str, units: list[str], optimiser: str
):
    torch.manual_seed(0)
    model = MODELS[name]()
    mask = _mask(model, units, mean=True)
    entries = frozen_entries(model, mask)
    before = [parameter.detach().clone() for parameter, _ in entries]
    _train(model, mask, optimiser)
    assert len(entries) == len({site.module for site in mask.sites})
    for (parameter, where), old in zip(entries, before, strict=True):
        assert where.any()
        assert torch.equal(parameter[where], old[where])
        assert (parameter != old)[~where].float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "units"), [(n, u) for n, u in CASES if u != ["weights"]]
)
@pytest.mark.parametrize("mean", [False, True])
def test_what_enters_the_projection_is_the_ablation_value_bit_for_bit(
    name: str, units: list[str], mean: bool
):
    torch.manual_seed(0)
    model = MODELS[name]()
    mask = _mask(model, units, mean=mean)
    seen: dict[str, list[Tensor]] = {site.name: [] for site in mask.sites}
    moving = OPTIMISERS["adamw"](list(model.parameters()))
    with held(model, mask) as frozen:
        for site in mask.sites:
            model.get_submodule(site.module).register_forward_pre_hook(
                lambda _, args, name=site.name: seen[name].append(args[0].detach())
            )
        for _ in range(3):
            model(**_inputs(model)).logits.square().mean().backward()
            moving.step()
            moving.zero_grad()
            for entry in frozen:
                entry.restore_()
    for site in mask.sites:
        ablated = (~mask.keep[site.name]).repeat_interleave(site.unit_size)
        value = mask.ablated.values[site.name][ablated]
        assert len(seen[site.name]) == 3
        for activation in seen[site.name]:
            assert (activation[..., ablated] == value).all()
        assert not torch.equal(seen[site.name][0], seen[site.name][2])


@pytest.mark.parametrize("name", MODELS)
def test_held_hidden_units_stay_at_their_value(name: str):
    torch.manual_seed(0)
    model = MODELS[name]()
    mask = _mask(model, ["hidden"], mean=True)
    outputs: dict[str, Tensor] = {}
    moving = OPTIMISERS["adamw"](list(model.parameters()))
    with held(model, mask) as frozen:
        assert frozen == ()
        for site in mask.sites:
            model.get_submodule(site.module).register_forward_hook(
                lambda _, __, output, name=site.name: outputs.update(
                    {name: output[0] if isinstance(output, tuple) else output}
                )
            )
        for _ in range(3):
            model(**_inputs(model)).logits.square().mean().backward()
            moving.step()
            moving.zero_grad()
            for site in mask.sites:
                ablated = ~mask.keep[site.name]
                value = mask.ablated.values[site.name][ablated]
                assert (outputs[site.name][..., ablated] == value).all()


def test_frozen_entries_have_no_gradient_and_gather_no_momentum():
    torch.manual_seed(0)
    model = _bert()
    mask = _mask(model, ["neurons", "heads"])
    moving = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    with held(
        model,
        mask,
    ) as frozen:
        model(**_inputs(model)).logits.square().mean().backward()
        for entry in frozen:
            assert entry.parameter.grad is not None
            assert (entry.parameter.grad[entry.where] == 0).all()
            assert (entry.parameter.grad[~entry.where] != 0).any()
        moving.step()
        for entry in frozen:
            state = moving.state[entry.parameter]
            assert (state["exp_avg"][entry.where] == 0).all()
            assert (state["exp_avg_sq"][entry.where] == 0).all()


def test_live_units_at_spared_positions_do_not_move_the_frozen_weights():
    torch.manual_seed(0)
    model = _bert()
    mask = _mask(model, ["neurons"], special=True)
    entries = frozen_entries(model, mask)
    before = [parameter.detach().clone() for parameter, _ in entries]
    _train(model, mask, "adamw")
    for (parameter, where), old in zip(entries, before, strict=True):
        assert torch.equal(parameter[where], old[where])


def test_an_ablated_neurons_effect_on_the_logits_stays_constant():
    """Feeding anything into an ablated neuron changes no logit, before and after."""
    torch.manual_seed(0)
    model = _mlp()
    mask = _mask(model, ["neurons"])
    ablated = ~mask.keep[mask.sites[0].name]
    _train(model, mask, "adamw")
    with mask.applied(model), torch.no_grad():
        base = model(**_inputs(model)).logits
        model.blocks[0].linear.bias[ablated] += 5.0
        assert torch.equal(model(**_inputs(model)).logits, base)


def test_gradients_flow_again_after_the_context_even_after_an_error():
    torch.manual_seed(0)
    model = _gpt2()
    mask = _mask(model, ["neurons"])
    with pytest.raises(RuntimeError, match="stop"), held(model, mask):
        raise RuntimeError("stop")
    model(**_inputs(model)).logits.square().mean().backward()
    for parameter, where in frozen_entries(model, mask):
        assert parameter.grad is not None
        assert (parameter.grad[where] != 0).any()


def test_two_sites_on_one_module_freeze_the_union():
    model = _mlp()
    neurons, weights = sites_of(model, ["neurons"])[0], Site("weights", "output", 0, 24)
    keep = {
        neurons.name: torch.arange(8) != 0,
        weights.name: torch.arange(24) != 23,
    }
    mask = FrozenMask(keep, (neurons, weights), zero_values((neurons, weights)))
    ((_, where),) = frozen_entries(model, mask)
    expected = torch.zeros(3, 8, dtype=torch.bool)
    expected[:, 0] = True
    expected[2, 7] = True
    assert torch.equal(where, expected)


def _edge_mask(model: nn.Module) -> FrozenMask:
    sites = sites_of(model, ["edges"])
    rng = torch.Generator().manual_seed(0)
    scores = {site.name: torch.rand(site.n_units, generator=rng) for site in sites}
    return FrozenMask.exactly_k(scores, sites, zero_values(sites), n_ablated=20)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_train_under_a_mask_on_edges_and_what_runs_is_what_they_became(
    kind: str,
):
    torch.manual_seed(0)
    model: Any = MODELS[kind]().train()
    mask = _edge_mask(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with held(model, mask) as frozen:
        assert frozen == ()
        for _ in range(6):
            loss = model(input_ids=IDS, labels=IDS).loss
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            inside = model(input_ids=IDS).logits
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad(), mask.applied(model):
        again = model(input_ids=IDS).logits
    torch.testing.assert_close(inside, again, atol=1e-6, rtol=0)


def test_a_mask_on_edges_is_held_only_where_it_can_be():
    for kind in ("gpt2", "bert"):
        mask = _edge_mask(MODELS[kind]())
        check_holdable(mask, {"lasting"})
        with pytest.raises(UserError, match="cannot be written into the weights"):
            check_holdable(mask, {"lasting", "one_shot"})
