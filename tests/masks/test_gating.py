"""Gates in models: what is cut, where, and that nothing of it stays behind."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from circuitcut.masks.ablation import (
    AblationValues,
    mean_values,
    record_values,
    zero_values,
)
from circuitcut.masks.gating import gated
from circuitcut.masks.mask_set import MaskSet
from circuitcut.masks.registry import GateSettings
from circuitcut.models.architectures import sites_of
from circuitcut.models.mlp import Mlp
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.masks.conftest import OWN_BLOCKS

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "qwen3", "bert", "distilbert", "mlp"]
FAMILIES += OWN_BLOCKS
SPECIAL = 7


def _kinds(family: str) -> list[str]:
    return [kind for kind in MODULE_KINDS if family != "mlp" or kind != "heads"]


CASES = [(family, kind) for family in FAMILIES for kind in _kinds(family)]


def on_stream(change):
    """A forward hook that changes the stream, also where a block returns a tuple."""

    def hook(_, __, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def _gates(sites, fill=None, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        site.name: torch.rand(site.n_units, generator=rng)
        if fill is None
        else torch.full((site.n_units,), fill)
        for site in sites
    }


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_open_gates_change_nothing(
    family, kind, ablation, make_model, make_inputs, logits_of
):
    inputs = make_inputs(family)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-5)):
        model = make_model(family).to(dtype)
        if family == "mlp":
            inputs = {"pixels": inputs["pixels"].to(dtype)}
        sites = sites_of(model, [kind])
        values = zero_values(sites)
        if ablation == "mean":
            where = torch.ones(next(iter(inputs.values())).shape).bool()
            where = where[:, 0] if family == "mlp" else where
            values = mean_values(model, sites, [(inputs, where)])
        plain = logits_of(model, inputs)
        for gates in (_gates(sites, 1.0), _gates(sites, True)):
            with gated(model, sites, gates, values):
                cut = logits_of(model, inputs)
            assert (cut - plain).abs().max() <= tolerance


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_closing_a_site_with_zero_is_zeroing_by_hand(
    family, kind, make_model, make_inputs, logits_of
):
    inputs = make_inputs(family)
    sites = sites_of(make_model(family), [kind])
    for site in {sites[0], sites[-1]}:
        model, by_hand = make_model(family), make_model(family)
        module = by_hand.get_submodule(site.module)
        if kind == "hidden":
            module.register_forward_hook(on_stream(torch.zeros_like))
        else:
            # no input, or no weight, of the projection is left: only its bias
            module.weight.zero_()
        with gated(model, [site], _gates([site], 0.0), zero_values([site])):
            cut = logits_of(model, inputs)
        expected = logits_of(by_hand, inputs)
        torch.testing.assert_close(cut, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_soft_gates_are_the_formula_written_out(
    family, kind, make_model, make_inputs, logits_of
):
    model, inputs = make_model(family), make_inputs(family)
    site = sites_of(model, [kind])[-1]
    values = record_values(model, [site], make_inputs(family, seed=1))
    mean = values.values[site.name].mean(
        dim=tuple(range(values.values[site.name].dim() - 1))
    )
    gates = _gates([site])
    with gated(model, [site], gates, AblationValues("mean", {site.name: mean})):
        cut = logits_of(model, inputs)

    by_hand = make_model(family)
    module = by_hand.get_submodule(site.module)
    keep = gates[site.name].double()
    if kind == "weights":
        keep, weight = keep.view_as(module.weight), module.weight.clone()
        transposed = not isinstance(module, nn.Linear)
        module.weight.mul_(keep)
        rest = (1 - keep) * weight
        module.bias = nn.Parameter(
            (0 if module.bias is None else module.bias)
            + (mean @ rest if transposed else rest @ mean)
        )
    else:
        wide = keep.repeat_interleave(site.unit_size)
        blend = lambda x: wide * x + (1 - wide) * mean  # noqa: E731
        if kind == "hidden":
            module.register_forward_hook(on_stream(blend))
        else:
            module.register_forward_pre_hook(lambda _, args: (blend(args[0]),))
    expected = logits_of(by_hand, inputs)
    torch.testing.assert_close(cut, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_all_closed_with_counterfactual_values_is_the_counterfactual_run(
    family, kind, make_model, make_inputs, logits_of
):
    model = make_model(family)
    site = sites_of(model, [kind])[-1]
    inputs, other = make_inputs(family), make_inputs(family, seed=1)
    values = record_values(model, [site], other)
    with gated(model, [site], _gates([site], 0.0), values):
        cut = record_values(model, [site], inputs)
        logits = logits_of(model, inputs)
    if kind in ("neurons", "heads", "weights"):
        # what the projection then reads is the other run's input, bit for bit
        module = model.get_submodule(site.module)
        expected = module(values.values[site.name])
        assert torch.isfinite(logits).all()
        recorded = []
        handle = module.register_forward_hook(lambda _, __, out: recorded.append(out))
        with gated(model, [site], _gates([site], 0.0), values):
            logits_of(model, inputs)
        handle.remove()
        torch.testing.assert_close(recorded[0], expected, rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(
            cut.values[site.name], values.values[site.name], rtol=0, atol=0
        )


def _tiny(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_head=2, n_layer=2, bos_token_id=0, eos_token_id=1
    )
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    return GPT2LMHeadModel(config).double().eval().requires_grad_(False)


IDS = torch.tensor([[SPECIAL, 2, 3, 4, SPECIAL], [5, 6, SPECIAL, 8, 9]])


@pytest.mark.parametrize("kind", MODULE_KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_special_positions_are_never_cut(kind, frozen):
    model = _tiny()
    site = sites_of(model, [kind], layers=[1])[-1]
    seen = {}
    module = model.get_submodule(site.module)
    module.register_forward_hook(lambda _, __, output: seen.update(output=output))
    model(input_ids=IDS)
    plain = seen["output"]
    gates = _gates([site], False if frozen else 0.0)
    with gated(model, [site], gates, zero_values([site]), special_ids=[SPECIAL]):
        # a hook registered later sees what the gate made of the output
        late = module.register_forward_hook(lambda _, __, out: seen.update(output=out))
        model(IDS)  # positional input_ids are found as well
        late.remove()
    special = IDS == SPECIAL
    assert torch.equal(seen["output"][special], plain[special])
    assert (seen["output"] - plain)[~special].abs().min(dim=0).values.max() > 0


@pytest.mark.parametrize("family", ["opt", "bloom", "modernbert"])
@pytest.mark.parametrize("kind", ["neurons", "weights", "hidden"])
def test_special_positions_and_values_by_position_in_every_form_of_block(
    family, kind, make_model, make_inputs, logits_of
):
    """One position at a time: what is read there is the value of that position."""
    model, inputs = make_model(family), make_inputs(family)
    ids = inputs["input_ids"]
    special = int(ids[0, 2])
    site = sites_of(model, [kind], layers=[1])[-1]
    seen = []
    module = model.get_submodule(site.module)
    where = inputs["attention_mask"].bool()
    values = mean_values(model, [site], [(inputs, where)], per_position=True)
    module.register_forward_hook(lambda _, __, out: seen.append(out))
    logits_of(model, inputs)
    with gated(model, [site], _gates([site], 0.0), values, special_ids=[special]):
        late = module.register_forward_hook(lambda _, __, out: seen.append(out))
        logits_of(model, inputs)
        late.remove()
    if isinstance(seen[0], tuple):
        seen = [output[0] for output in seen]
    plain, cut = (seen[i].reshape(*ids.shape, -1) for i in (0, -1))
    expected = values.values[site.name]
    if kind != "hidden":
        expected = module.__class__.forward(module, expected)
    expected = expected.expand_as(plain)
    spared = (ids == special)[..., None]
    torch.testing.assert_close(
        cut, torch.where(spared, plain, expected), rtol=0, atol=1e-10
    )


def test_special_ids_need_input_ids():
    model = _tiny()
    sites = sites_of(model, ["neurons"])
    with (
        gated(model, sites, _gates(sites), zero_values(sites), special_ids=[1]),
        pytest.raises(
            UserError, match="special_ids needs a model called with input_ids"
        ),
    ):
        model(inputs_embeds=torch.zeros(1, 2, 8).double())


@pytest.mark.parametrize("kind", MODULE_KINDS)
def test_values_by_position_also_fit_shorter_inputs_and_a_key_value_cache(kind):
    model = _tiny()
    sites = sites_of(model, [kind])
    where = torch.ones_like(IDS).bool()
    values = mean_values(model, sites, [({"input_ids": IDS}, where)], per_position=True)
    gates = _gates(sites)
    with gated(model, sites, gates, values):
        whole = model(input_ids=IDS).logits
        start = model(input_ids=IDS[:, :3], use_cache=True)
        rest = model(input_ids=IDS[:, 3:], past_key_values=start.past_key_values).logits
    torch.testing.assert_close(start.logits, whole[:, :3], rtol=0, atol=1e-10)
    torch.testing.assert_close(rest, whole[:, 3:], rtol=0, atol=1e-10)


def test_more_positions_than_values_are_refused():
    model = _tiny()
    sites = sites_of(model, ["neurons"])
    short = [({"input_ids": IDS[:, :3]}, torch.ones(2, 3).bool())]
    values = mean_values(model, sites, short, per_position=True)
    with (
        gated(model, sites, _gates(sites), values),
        pytest.raises(UserError, match=r"shape \(3, 32\).*\(2, 5, 32\)"),
    ):
        model(input_ids=IDS)


def _state(model: nn.Module) -> dict[str, object]:
    hooks = {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    }
    return hooks | {name: p.clone() for name, p in model.state_dict().items()}


@pytest.mark.parametrize("failing", [False, True])
def test_afterwards_the_model_is_as_before_also_after_an_exception(failing):
    model = _tiny()
    sites = sites_of(model, MODULE_KINDS)
    before, logits = _state(model), model(input_ids=IDS).logits
    try:
        with gated(model, sites, _gates(sites), zero_values(sites), special_ids=[1]):
            model(input_ids=IDS)
            if failing:
                model(input_ids=torch.full((1, 1), 10_000))
    except IndexError:
        assert failing
    after = _state(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if torch.is_tensor(value) else True
        assert torch.is_tensor(value) or value == after[key]
    assert torch.equal(model(input_ids=IDS).logits, logits)


def test_a_site_that_fails_to_install_leaves_no_hooks_of_the_others():
    model = _tiny()
    sites = (*sites_of(model, ["neurons"]), Site("neurons", "transformer.gone", 0, 4))
    before = _state(model)
    with (
        pytest.raises(UserError, match=r"no module 'transformer\.gone'"),
        gated(model, sites, _gates(sites), zero_values(sites)),
    ):
        pass
    assert _state(model).keys() == before.keys()
    assert all(
        value == before[key]
        for key, value in _state(model).items()
        if isinstance(value, tuple)
    )


def test_nested_cuts_of_activations_act_one_after_the_other():
    model = _tiny()
    sites = sites_of(model, ["neurons", "heads", "hidden"])
    first, second = _gates(sites, seed=1), _gates(sites, seed=2)
    zeros = zero_values(sites)
    with gated(model, sites, first, zeros), gated(model, sites, second, zeros):
        nested = model(input_ids=IDS).logits
    product = {name: first[name] * second[name] for name in first}
    with gated(model, sites, product, zeros):
        once = model(input_ids=IDS).logits
    torch.testing.assert_close(nested, once, rtol=0, atol=1e-6)


def test_nested_cuts_of_the_same_weights_are_refused():
    model = _tiny()
    sites = sites_of(model, ["weights"])
    with (
        gated(model, sites, _gates(sites), zero_values(sites)),
        pytest.raises(UserError, match="cannot be nested"),
        gated(model, sites, _gates(sites), zero_values(sites)),
    ):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradient_checkpointing_gives_the_gradients_of_the_plain_backward():
    model = _tiny().train()
    sites = sites_of(model, MODULE_KINDS)
    masks = MaskSet(sites, "hard_concrete", GateSettings(keep_prob=0.7))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        embeddings = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        embeddings = embeddings.double().requires_grad_()
        keep = masks.sample(torch.Generator().manual_seed(1))
        masks.zero_grad()
        with gated(model, sites, keep, zero_values(sites)):
            model(
                inputs_embeds=embeddings, use_cache=False
            ).logits.square().sum().backward()
        gradients.append((masks.gate.log_alpha.grad.clone(), embeddings.grad))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", MODULE_KINDS)
@pytest.mark.parametrize("ablation", ["zero", "mean", "positions", "counterfactual"])
def test_the_gates_gradient_in_a_model_is_that_of_finite_differences(kind, ablation):
    model = _tiny()
    site = sites_of(model, [kind], layers=[1])[-1]
    inputs = {"input_ids": IDS}
    values = {
        "zero": lambda: zero_values([site]),
        "mean": lambda: mean_values(model, [site], [(inputs, IDS > 3)]),
        "positions": lambda: mean_values(model, [site], [(inputs, IDS > 3)], True),
        "counterfactual": lambda: record_values(
            model, [site], {"input_ids": IDS.flip(0)}
        ),
    }[ablation]()
    gates = _gates([site])[site.name].double().requires_grad_()

    def loss(vector):
        with gated(model, [site], {site.name: vector}, values, special_ids=[SPECIAL]):
            return model(**inputs).logits.log_softmax(-1)[..., 3].sum()

    (gradient,) = torch.autograd.grad(loss(gates), gates)
    step = torch.randn(gates.shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        numeric = (loss(gates + 1e-5 * step) - loss(gates - 1e-5 * step)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", MODULE_KINDS)
def test_bfloat16_autocast_gives_float32_gradients_near_the_exact_ones(kind):
    model = _tiny().float()
    sites = sites_of(model, [kind])
    gradients = []
    for enabled in (False, True):
        masks = MaskSet(sites, "clamped", GateSettings())
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
            gated(model, sites, masks.values(), zero_values(sites)),
        ):
            loss = model(input_ids=IDS).logits.float().log_softmax(-1)[..., 3].sum()
        loss.backward()
        gradients.append(masks.gate.gate.grad)
    exact, rounded = gradients
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_a_tuple_output_is_cut_in_its_first_element():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "rest"

    model = nn.Sequential(Pair())
    site = Site("hidden", "0", 0, 4)
    gates = torch.tensor([True, False, True, False])
    with gated(model, [site], {site.name: gates}, zero_values([site])):
        first, rest = model(torch.ones(2, 3, 4))
    assert rest == "rest"
    assert torch.equal(first, gates.float().expand(2, 3, 4))


def test_wrong_gates_and_values_are_refused_by_name():
    model = Mlp(6, 5, 2)
    sites = sites_of(model, ["neurons"])
    zeros = zero_values(sites)
    with (
        pytest.raises(UserError, match=r"5 gates at output:neurons, got \(4,\)"),
        gated(model, sites, {"output:neurons": torch.ones(4)}, zeros),
    ):
        pass
    with (
        pytest.raises(UserError, match="record them on the paired inputs"),
        gated(model, sites, _gates(sites, 0.0), AblationValues("counterfactual", {})),
    ):
        pass
    wide = [Site("neurons", "output", 0, 7)]
    with (
        gated(model, wide, _gates(wide), zero_values(wide)),
        pytest.raises(
            UserError, match="activations of width 5, the mask is for width 7"
        ),
    ):
        model(torch.zeros(2, 6))


def test_the_image_model_takes_values_per_example():
    model = Mlp(6, 5, 2).double()
    sites = sites_of(model, ["weights", "neurons"])
    pixels = torch.randn(4, 6).double()
    values = record_values(model, sites, {"pixels": pixels.flip(0)})
    with gated(model, sites, _gates(sites, 0.0), values):
        cut = model(pixels).logits
    torch.testing.assert_close(cut, model(pixels.flip(0)).logits, rtol=0, atol=1e-12)
