"""What operations write, by hand, and that everything comes back bit by bit."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from circuitcut.attribution.knowledge.base_pass import BasePass
from circuitcut.attribution.knowledge.effects import (
    Variant,
    probabilities,
    random_like,
)
from circuitcut.attribution.knowledge.gradients import integrated_gradients
from circuitcut.attribution.knowledge.operations import (
    edit_,
    edited,
    embedding_of,
    enhanced,
    erase_,
    erased,
    scale_,
    scaled,
    suppressed,
)
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.loading import load_model
from circuitcut.models.saving import save_model
from circuitcut.storage.errors import UserError
from tests.attribution.knowledge.test_gradients import (
    model_of,
    probability,
    prompts_of,
)
from tests.models.tiny import DECODERS, ENCODERS, tiny_inputs, tiny_loaded, tiny_model

UNITS = frozenset({(0, 3), (0, 40), (1, 7)})
# Conv1D, Linear without and with bias, blocks that return tuples
KINDS = ["gpt2", "llama", "bert", "gpt_neo"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(model)).logits


def values(model: Any, layer: int) -> torch.Tensor:
    """What every neuron writes, (unit, d_model)."""
    weight = model.get_submodule(sites_of(model, ["neurons"])[layer].module).weight
    stored = weight.detach().clone()
    return stored if stored.shape[0] == 48 else stored.T


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_everywhere_is_scaling_the_values(kind: str):
    model = model_of(kind)
    with enhanced(model, UNITS):
        doubled = logits(model)
    with suppressed(model, UNITS):
        silent = logits(model)
    keep = {s.name: torch.ones(s.n_units).bool() for s in sites_of(model, ["neurons"])}
    sites = sites_of(model, ["neurons"])
    for layer, number in UNITS:
        keep[sites[layer].name][number] = False
    with FrozenMask(keep, sites, zero_values(sites)).applied(model):
        torch.testing.assert_close(silent, logits(model))
    scale_(model, UNITS, 2.0)
    torch.testing.assert_close(doubled, logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_at_positions_leaves_the_others_alone(kind: str):
    model = model_of(kind)
    module = model.get_submodule(sites_of(model, ["neurons"])[0].module)
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain = logits(model)
    handle.remove()
    positions = torch.tensor([[1, 4], [2, 2]])
    with scaled(model, UNITS, 3.0, positions):
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        logits(model)
        handle.remove()
        with pytest.raises(UserError, match="a row for every row"):
            model(input_ids=torch.tensor([[5, 6, 7]]))
    expected = seen[0].clone()
    for row, places in enumerate([[1, 4], [2]]):
        for place in places:
            expected[row, place, [3, 40]] *= 3.0
    torch.testing.assert_close(seen[1], expected)
    assert torch.equal(plain, logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_erasing_and_editing_follow_the_published_formulas(kind: str):
    model = model_of(kind)
    before = values(model, 0)
    e_old, e_new = embedding_of(model, 11), embedding_of(model, 12)
    with erased(model, UNITS):
        assert not values(model, 0)[[3, 40]].any()
    with erased(model, UNITS, token=11):
        assert torch.equal(values(model, 0)[3], e_old)
    with edited(model, UNITS, 11, 12):
        v = before[40]
        expected = (
            v - v.norm() / e_old.norm() * e_old + 8 * v.norm() / e_new.norm() * e_new
        )
        torch.testing.assert_close(values(model, 0)[40], expected)
        others = [i for i in range(48) if i not in (3, 40)]
        assert torch.equal(values(model, 0)[others], before[others])
    with edited(model, UNITS, 11, 12, formula="plain"):
        torch.testing.assert_close(
            values(model, 0)[3], before[3] - 2 * e_old + 2 * e_new
        )
    with edited(model, UNITS, 11, 12, formula="plain", strengths=(0.0, 0.5)):
        torch.testing.assert_close(values(model, 0)[3], before[3] + 0.5 * e_new)


def stop_in(context: Any, model: Any, plain: torch.Tensor) -> None:
    with context:
        assert not torch.equal(logits(model), plain)
        raise RuntimeError("stop")


@pytest.mark.parametrize("kind", KINDS)
def test_after_every_operation_the_model_is_bit_identical_also_after_an_error(
    kind: str,
):
    model = tiny_model(kind, "causal_lm" if kind in DECODERS else "masked_lm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = logits(model)
    for context in (
        suppressed(model, UNITS),
        enhanced(model, UNITS),
        erased(model, UNITS),
        erased(model, UNITS, 5),
        edited(model, UNITS, 5, 6),
        edited(model, UNITS, 5, 6, formula="plain"),
    ):
        with pytest.raises(RuntimeError, match="stop"):
            stop_in(context, model, plain)
        assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
        assert torch.equal(logits(model), plain)


def test_a_baked_operation_is_a_plain_checkpoint(tmp_path: Any):
    loaded = tiny_loaded("bert", "masked_lm")
    with erased(loaded.model, UNITS):
        erased_logits = logits(loaded.model)
    erase_(loaded.model, UNITS)
    save_model(loaded, tmp_path / "model")
    again = load_model(str(tmp_path / "model"), head="masked_lm")
    assert torch.equal(logits(again.model), erased_logits)


def test_wrong_units_tokens_and_formulas_are_refused_before_any_change():
    model = model_of("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for units in ({(0, 3), (2, 0)}, {(0, 3), (1, 48)}, {(-1, 0)}):
        with pytest.raises(UserError, match="of another model"):
            erase_(model, units)
    with pytest.raises(UserError, match="one of the 64 of the vocabulary"):
        edit_(model, UNITS, 5, 64)
    with pytest.raises(UserError, match="argument formula"):
        edit_(model, UNITS, 5, 6, formula="both")
    electra = tiny_model("electra", "masked_lm")
    with pytest.raises(UserError, match="16 wide and its blocks 32"):
        erase_(electra, UNITS, 5)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "opt", "bloom", "bert", "distilbert"]
)
def test_effects_in_one_pass_equal_hooks_on_the_whole_model(kind: str):
    model, prompts = model_of(kind), prompts_of(kind)
    assert kind in (*DECODERS, *ENCODERS)
    cases = [
        Variant(0, UNITS, 0.0),
        Variant(1, UNITS, 2.0),
        Variant(1, frozenset({(1, 5)}), 0.0),
        Variant(2, frozenset(), 0.0),
    ]
    base = BasePass.run(model, prompts)
    for n_positions in (1, 1000):
        found = probabilities(base, cases, n_positions)
        for case, p in zip(cases, found.tolist(), strict=True):
            prompt = prompts[case.prompt]
            positions = torch.tensor([prompt.positions])
            with scaled(model, case.units, case.factor, positions), torch.no_grad():
                expected = probability(model, prompt).item()
            assert p == pytest.approx(expected, rel=1e-5)


def test_no_pass_is_taken_for_one_with_padding(monkeypatch: pytest.MonkeyPatch):
    """Transformers warns where an input begins or ends with the token of padding."""
    model, prompts = model_of("gpt2"), prompts_of("gpt2")
    model.config.pad_token_id = 0
    seen: list[bool] = []

    def looked_at(of: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        seen.append(mask is None and of.config.pad_token_id in ids[:, [-1, 0]])

    monkeypatch.setattr(
        PreTrainedModel, "warn_if_padding_and_no_attention_mask", looked_at
    )
    base = BasePass.run(model, prompts)
    probabilities(base, [Variant(0, UNITS, 0.0), Variant(1, UNITS, 2.0)])
    integrated_gradients(model, prompts, n_steps=1)
    assert seen
    assert not any(seen)


def test_random_units_are_of_the_same_layers_and_no_others():
    rng = torch.Generator().manual_seed(3)
    excluded = frozenset((0, number) for number in range(46)) | UNITS
    drawn = random_like(UNITS, [48, 48], rng, excluded)
    assert {unit for unit in drawn if unit[0] == 0} == {(0, 46), (0, 47)}
    assert len(drawn) == 3
    assert not drawn & excluded
