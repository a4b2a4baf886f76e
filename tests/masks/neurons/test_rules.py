"""Ablation by a rule against the definition of a neuron, in float64, unit by unit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.masks.neurons.rule import (
    CONDITIONS,
    KINDS,
    QUADRANTS,
    WITH_THETA,
    Rule,
    rule_of,
)
from circuitcut.masks.neurons.values import conditional_means, rule_values
from circuitcut.models.architectures import ARCHITECTURES, gate_path, sites_of
from circuitcut.relearning.holding import check_holdable, held
from circuitcut.relearning.protocol import mask_hash
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.layouts import LAYOUTS
from circuitcut.weight_classes.selection import flipped_of
from tests.models.tiny import (
    D_MLP,
    DECODERS,
    exact_norms,
    tiny_inputs,
    tiny_model,
)

GATED = [kind for kind in DECODERS if ARCHITECTURES[kind].gate is not None]
THETA = 0.03
CUT = (1, 2, 5, 11, 17, 30, 31, 47)
"""The neurons that are ablated, in both layers."""


def model_of(kind: str) -> Any:
    return tiny_model(kind, "causal_lm").double()


def theta_of(kind: str) -> float | None:
    return THETA if kind in WITH_THETA else None


def parts(mlp: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """g, u and the sign of w_gate . w_in, from the module's own weights."""
    if hasattr(mlp, "gate_up_proj"):
        w_gate, w_in = mlp.gate_up_proj.weight.chunk(2)
    else:
        w_gate, w_in = mlp.gate_proj.weight, mlp.up_proj.weight
    sign = torch.where((w_gate * w_in).sum(1) < 0, -1.0, 1.0)
    return x @ w_gate.T, x @ w_in.T, sign


def act_of(model: Any) -> Callable[[Tensor], Tensor]:
    config = model.config
    return ACT2FN[getattr(config, "hidden_activation", None) or config.hidden_act]


def changed(value: float, rule: Rule, mean: float) -> float:
    """What the rule makes of one activation, after the refactor."""
    theta = rule.theta or 0.0
    return {
        "zero": 0.0,
        "mean": mean,
        "fixed": theta,
        "cap": min(value, theta),
        "relu": max(value, 0.0),
        "scale": theta * value,
    }[rule.kind]


def acts(gate: float, value: float, rule: Rule) -> bool:
    of_gate = rule.gate == "any" or (gate > 0) == (rule.gate == "+")
    return of_gate and (rule.post == "any" or (value > 0) == (rule.post == "+"))


def by_hand(
    model: Any, mlp: Any, rule: Rule, means: Tensor, args: tuple[Tensor]
) -> Tensor:
    """The output of one MLP, neuron by neuron and token by token."""
    x = args[0].detach()
    gate, u, sign = parts(mlp, x)
    post = act_of(model)(gate) * u * sign
    seen = range(post.shape[1])
    spots = [(b, s) for b in range(len(post)) for s in seen]
    for unit in CUT:
        for b, s in spots:
            at_position = not rule.positions or s in rule.positions
            value = post[b, s, unit].item()
            if at_position and acts(gate[b, s, unit].item(), value, rule):
                post[b, s, unit] = changed(value, rule, means[unit].item())
    return mlp.down_proj(post * sign)


@contextmanager
def replaced(model: Any, rule: Rule, means: list[Tensor]) -> Iterator[None]:
    """Every MLP computes `by_hand`; means are those after the refactor."""
    handles = []
    for layer, mean in zip(model.model.layers, means, strict=True):
        hook = partial(by_hand, model, layer.mlp, rule, mean)
        handles.append(
            layer.mlp.register_forward_hook(
                lambda _, args, __, hook=hook: hook(args)  # replaces the output
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mask_of(model: Any, rule: Rule, seed: int = 3) -> FrozenMask:
    """`CUT` in both layers; random means, as the model's own activations have them."""
    sites = sites_of(model, ["neurons"])
    flipped = flipped_of(checkpoint_of(model, "tiny"), "raw")
    rng = torch.Generator().manual_seed(seed)
    means = {s.name: torch.randn(s.width, generator=rng).double() for s in sites}
    values = rule_values(rule, sites, flipped, means if rule.kind == "mean" else None)
    kept = torch.ones(D_MLP, dtype=torch.bool)
    kept[list(CUT)] = False
    return FrozenMask({s.name: kept for s in sites}, sites, values)


def refactored_means(mask: FrozenMask) -> list[Tensor]:
    return [
        torch.where(f, -1.0, 1.0) * mask.ablated.values.get(name, torch.zeros(D_MLP))
        for name, f in mask.ablated.flipped.items()
    ]


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad(), exact_norms(model):
        return model(**inputs).logits


def test_every_family_with_gates_names_its_gate():
    """The tables of modules and of checkpoint tensors agree on who has gates."""
    for kind, architecture in ARCHITECTURES.items():
        layout = LAYOUTS.get(kind)
        is_gated = layout is not None and layout.is_gated
        assert (architecture.gate is not None) == is_gated, kind
    assert set(GATED) >= {"llama", "phi3", "gemma2", "qwen3", "olmo2", "mistral"}


@pytest.mark.parametrize("kind", GATED)
def test_a_rule_does_what_it_says_to_every_neuron_and_token(kind: str):
    """All kinds of change and all conditions, against loops over neurons and tokens."""
    model, inputs = model_of(kind), {"input_ids": torch.arange(5, 13).view(2, 4)}
    clean = logits(model, inputs)
    pairs: list[tuple[Any, str]] = [("zero", c) for c in CONDITIONS]
    pairs += [("mean", "gate-"), ("fixed", "post-"), ("scale", "gate+/post-")]
    pairs += [
        ("cap", "all"),
        ("cap", "gate+/post+"),
        ("relu", "all"),
        ("relu", "gate-"),
    ]
    for change, condition in pairs:
        rule = rule_of(change, theta_of(change), condition)
        mask = mask_of(model, rule)
        with mask.applied(model):
            cut = logits(model, inputs)
        with replaced(model, rule, refactored_means(mask)):
            expected = logits(model, inputs)
        assert torch.allclose(cut, expected, atol=1e-10), (change, condition)
        assert not torch.allclose(cut, clean, atol=1e-6), (change, condition)
    assert torch.equal(logits(model, inputs), clean)


@pytest.mark.parametrize("change", KINDS)
def test_no_ablated_neuron_is_the_clean_run_to_the_bit(change: Any):
    model, inputs = tiny_model("llama", "causal_lm"), None
    inputs = tiny_inputs(model)
    mask = mask_of(model, rule_of(change, theta_of(change), "gate-/post+"))
    empty = replace(mask, keep={k: torch.ones_like(v) for k, v in mask.keep.items()})
    clean = logits(model, inputs)
    with empty.applied(model):
        assert torch.equal(logits(model, inputs), clean)


def edit(model: Any, mask: FrozenMask, x: Tensor) -> Tensor:
    """What a mask adds to the input of layer 0's output projection."""
    seen: list[Tensor] = []
    mlp = model.model.layers[0].mlp
    with mask.applied(model):
        handle = mlp.down_proj.register_forward_pre_hook(
            lambda _, args: seen.append(args[0])
        )
        mlp(x)
        handle.remove()
    mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mlp(x)
    return seen[0] - seen[1]


@pytest.mark.parametrize("change", ["zero", "fixed", "mean"])
def test_quadrants_are_disjoint_and_add_up_to_the_whole(change: Any):
    x = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(0)).double()
    x[0, 0] = 0  # gate and activation are exactly 0 there

    def edited(condition: str) -> Tensor:
        model = model_of("llama")
        rule = rule_of(change, theta_of(change), condition)
        with torch.no_grad():
            return edit(model, mask_of(model, rule), x)

    of_quadrants = torch.stack([edited(quadrant) for quadrant in QUADRANTS])
    changes = of_quadrants != 0
    assert (changes.sum(0) <= 1).all()
    assert torch.allclose(of_quadrants.sum(0), edited("all"), atol=1e-12)
    cut = changes[..., list(CUT)].sum((1, 2, 3))
    assert (cut > 0).all()
    n_zeros = len(CUT) if change == "zero" else 0  # an activation of 0 stays 0
    assert cut.sum() == 3 * 40 * len(CUT) - n_zeros
    halves = edited("gate+") + edited("gate-")
    assert torch.allclose(halves, edited("all"), atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_generated_text_is_that_of_the_whole_text_run_anew(kind: str):
    model = model_of(kind)
    for rule in (
        rule_of("scale", -3.0, "gate-/post+"),
        rule_of("fixed", 2.0, "gate+", (1, 6)),
    ):
        mask = mask_of(model, rule)
        ids = torch.arange(5, 13).view(2, 4)
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        clean = model.generate(ids, **settings, pad_token_id=0)
        with mask.applied(model):
            text = model.generate(ids, **settings, pad_token_id=0)
            anew = ids
            for _ in range(6):
                best = logits(model, {"input_ids": anew})[:, -1].argmax(-1)
                anew = torch.cat([anew, best[:, None]], 1)
        assert torch.equal(text, anew)
        assert not torch.equal(text, clean)


@pytest.mark.parametrize("change", KINDS)
def test_gradients_under_a_rule_are_those_of_finite_differences(change: Any):
    """Of the gates, of the weights behind a neuron and of those that it reads with."""
    model = model_of("llama").train()
    sites = sites_of(model, ["neurons"])
    mask = mask_of(model, rule_of(change, theta_of(change), "gate-"))
    ids = torch.arange(5, 13).view(2, 4)
    keep = {s.name: torch.full((D_MLP,), 0.6).double().requires_grad_() for s in sites}
    mlp = model.model.layers[0].mlp
    tensors = [keep[sites[0].name], mlp.up_proj.weight, mlp.down_proj.weight]

    def loss() -> Tensor:
        with gated(model, sites, keep, mask.ablated), exact_norms(model):
            return model(ids).logits.square().mean()

    found = torch.autograd.grad(loss(), tensors)
    for tensor, gradient in zip(tensors, found, strict=True):
        place = (CUT[1],) if tensor.dim() == 1 else (CUT[1], 2)
        step, values = 1e-6, []
        for shift in (step, -step):
            with torch.no_grad():
                tensor[place] += shift
                values.append(loss().item())
                tensor[place] -= shift
        numeric = (values[0] - values[1]) / (2 * step)
        assert gradient[place].item() == pytest.approx(numeric, rel=1e-4, abs=1e-9)
        assert gradient.abs().max() > 0


def test_trained_gates_end_in_the_frozen_mask_and_in_the_clean_model():
    model, inputs = model_of("gemma2"), {"input_ids": torch.arange(5, 13).view(2, 4)}
    mask = mask_of(model, rule_of("cap", THETA, "post+"))
    clean = logits(model, inputs)
    with mask.applied(model):
        cut = logits(model, inputs)
    soft = {name: kept.double() for name, kept in mask.keep.items()}
    with gated(model, mask.sites, soft, mask.ablated):
        assert torch.equal(logits(model, inputs), cut)
    with gated(
        model,
        mask.sites,
        {n: torch.ones_like(k) for n, k in soft.items()},
        mask.ablated,
    ):
        assert torch.equal(logits(model, inputs), clean)


def test_a_rule_acts_at_its_positions_of_every_text_and_not_at_special_tokens():
    """Texts are padded on the left: positions count from a text's first token."""
    model = model_of("llama")
    rule = rule_of("zero", None, "all", (0, 2))
    mask = mask_of(model, rule)
    ids = torch.tensor([[7, 8, 9, 10], [0, 11, 12, 13]])
    attended = (ids != 0).long()

    def zeros(mask: FrozenMask) -> list[list[bool]]:
        seen: list[Tensor] = []
        with mask.applied(model), torch.no_grad():
            down = model.model.layers[0].mlp.down_proj
            handle = down.register_forward_pre_hook(
                lambda _, args: seen.append(args[0])
            )
            model(input_ids=ids, attention_mask=attended)
            handle.remove()
        return (seen[0][..., list(CUT)] == 0).all(-1).tolist()

    assert zeros(mask) == [[True, False, True, False], [False, True, False, True]]
    spared = replace(mask, special_ids=(9,))
    assert zeros(spared) == [[True, False, False, False], [False, True, False, True]]


def test_conditional_means_are_those_of_the_quadrants_weighted_by_frequency():
    model = model_of("qwen2")
    sites = sites_of(model, ["neurons"])
    flipped = flipped_of(checkpoint_of(model, "tiny"), "raw")
    inputs = {"input_ids": torch.arange(5, 53).view(4, 12)}
    where = torch.rand(4, 12, generator=torch.Generator().manual_seed(1)) > 0.2
    of: dict[str, Tensor] = {}
    for condition in ("all", "gate-", "post+", *QUADRANTS):
        rule = rule_of("mean", None, condition)
        batches = [
            ({"input_ids": ids}, w)
            for ids, w in zip(inputs["input_ids"].split(3), where.split(3), strict=True)
        ]
        with exact_norms(model):
            found = conditional_means(model, sites, batches, rule, flipped)
        of[condition] = found[sites[0].name]
    seen: list[Tensor] = []
    mlp = model.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, inputs)
    gate, u, sign = parts(mlp, seen[0])
    post = act_of(model)(gate) * u
    n_unmatched = 0
    for unit in range(D_MLP):
        numbers: dict[str, tuple[int, float]] = {}
        for quadrant in QUADRANTS:
            rule = rule_of("zero", None, quadrant)
            values = [
                p
                for g, p, w in zip(
                    gate[..., unit].flatten().tolist(),
                    post[..., unit].flatten().tolist(),
                    where.flatten().tolist(),
                    strict=True,
                )
                if w and acts(g, p * sign[unit].item(), rule)
            ]
            numbers[quadrant] = len(values), sum(values)
        for condition, mean in of.items():
            matching = [
                n
                for quadrant, n in numbers.items()
                if condition in ("all", quadrant) or condition in quadrant.split("/")
            ]
            n, total = (sum(part) for part in zip(*matching, strict=True))
            n_unmatched += n == 0
            expected = total / n if n else of["all"][unit].item()
            assert mean[unit].item() == pytest.approx(expected, abs=1e-9), condition
    assert n_unmatched > 0


def test_a_mask_with_a_rule_is_saved_read_and_hashed(tmp_path: Path):
    model = model_of("llama")
    masks = [
        mask_of(model, rule)
        for rule in (
            rule_of("cap", 0.5, "gate-/post+", (1, 3)),
            rule_of("cap", 0.5, "gate-/post+", (1, 4)),
            rule_of("cap", 0.25, "gate-/post+", (1, 3)),
            rule_of("mean", None, "gate+"),
        )
    ]
    hashes = {mask_hash(mask) for mask in masks}
    plain = replace(masks[0], ablated=zero_values(masks[0].sites))
    assert len(hashes | {mask_hash(plain)}) == 5
    for number, mask in enumerate(masks):
        folder = tmp_path / str(number)
        mask.save(folder)
        again = FrozenMask.load(folder)
        assert again.ablated.rule == mask.ablated.rule
        assert mask_hash(again) == mask_hash(mask)
        assert all(
            torch.equal(again.ablated.flipped[name], f)
            for name, f in mask.ablated.flipped.items()
        )
    plain.save(tmp_path / "plain")
    assert '"rule"' not in (tmp_path / "plain" / "mask.json").read_text()
    text = (tmp_path / "0" / "mask.json").read_text()
    for old, new, message in (
        ('"theta": 0.5', '"theta": null', "needs theta"),
        ('"gate": "-"', '"gate": "0"', "gate"),
        ('"ablation": "cap"', '"ablation": "counterfactual"', "unknown ablation kind"),
        ('"theta": 0.5', '"theta": 0.25', "changed since"),
        ('"kind": "neurons"', '"kind": "hidden"', "neurons alone"),
    ):
        assert old in text
        (tmp_path / "0" / "mask.json").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            FrozenMask.load(tmp_path / "0")


def test_a_held_rule_survives_an_optimiser_step():
    """Weights that read ablated neurons stay; those that they read with train."""
    model = model_of("llama")
    mask = mask_of(model, rule_of("zero", None, "gate-"))
    mlp = model.model.layers[1].mlp
    before = mlp.down_proj.weight.detach().clone()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    with held(model, mask) as frozen:
        model(torch.arange(5, 13).view(2, 4)).logits.square().mean().backward()
        assert mlp.up_proj.weight.grad[CUT[0]].abs().max() > 0
        optimiser.step()
        for entry in frozen:
            entry.restore_()
    moved = (mlp.down_proj.weight != before).any(0)
    assert moved.sum() == D_MLP - len(CUT)
    assert not moved[list(CUT)].any()


def test_what_a_rule_cannot_do_is_refused():
    for change in WITH_THETA:
        with pytest.raises(UserError, match=f"ablation {change} needs theta"):
            rule_of(change)
    with pytest.raises(UserError, match="theta belongs to ablation fixed, cap, scale"):
        rule_of("zero", 1.0)
    with pytest.raises(UserError, match="finite"):
        rule_of("cap", float("nan"))
    with pytest.raises(UserError, match=r"0 or above, got -1"):
        rule_of("zero", None, "all", (2, -1))
    with pytest.raises(UserError, match="every position once"):
        rule_of("zero", None, "all", (2, 2))
    with pytest.raises(UserError, match="condition must be one of all, gate"):
        rule_of("zero", None, "gate0")
    with pytest.raises(UserError, match="needs the means"):
        rule_values(rule_of("mean"), (), ())
    model = model_of("llama")
    mask = mask_of(model, rule_of("zero", None, "post-"))
    with pytest.raises(UserError, match=r"by a rule \(zero, post-\) cannot be baked"):
        mask.bake_(model)
    with pytest.raises(UserError, match="use --holdings lasting"):
        check_holdable(mask, {"one_shot"})
    check_holdable(mask, {"lasting"})
    with pytest.raises(UserError, match="must have the rule"):
        AblationValues("cap", {}, rule_of("zero"), mask.ablated.flipped)
    with pytest.raises(UserError, match="need a rule"):
        AblationValues("cap", {})


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_plain_neurons_have_a_sign_but_no_gate(kind: str):
    head = "causal_lm" if kind == "gpt2" else "masked_lm"
    model: nn.Module = tiny_model(kind, head).double()
    inputs: Any = tiny_inputs(model)
    assert gate_path(model, sites_of(model, ["neurons"])[0]) is None
    mask = mask_of(model, rule_of("zero", None, "post-"))
    with mask.applied(model):
        cut = logits(model, inputs)
    relu = mask_of(model, rule_of("relu"))
    with relu.applied(model):
        assert torch.equal(logits(model, inputs), cut)
    with pytest.raises(UserError, match=r"gate\+ needs gated neurons"):
        mask_of(model, rule_of("zero", None, "gate+")).applied(model).__enter__()
