"""Effects per token, frequencies and the most changed texts, against plain loops."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.neurons.rule import QUADRANTS, rule_of
from circuitcut.masks.neurons.values import rule_values, watching
from circuitcut.models.architectures import sites_of
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.activity import Activity, activity_of, pearson
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.cosines import cosines_of_layer
from circuitcut.weight_classes.mlp_weights import mlps_of_layer
from circuitcut.weight_classes.selection import flipped_of, frozen_mask
from circuitcut.weight_classes.tokens.effects import Effects, batched, token_effects
from tests.models.tiny import D_MLP, VOCAB, exact_norms, tiny_model

RNG = torch.Generator().manual_seed(7)
LENGTHS = (9, 4, 12, 2, 7, 12, 5, 3, 10)
TEXTS = [torch.randint(5, VOCAB, (n,), generator=RNG).tolist() for n in LENGTHS]
SPECIAL = (FIRST_POSITION, 2)


@pytest.fixture
def model() -> Iterator[Any]:
    model = tiny_model("llama", "causal_lm").double()
    with exact_norms(model):
        yield model


def cut_masks(model: Any) -> dict[str, Any]:
    sites = sites_of(model, ["neurons"])
    flipped = flipped_of(checkpoint_of(model, "tiny"), "raw")
    chosen = [torch.arange(D_MLP) % 3 == 0, torch.arange(D_MLP) % 5 == 0]
    quadrant = rule_values(rule_of("zero", None, "gate-/post+"), sites, flipped)
    whole = frozen_mask(chosen, sites, zero_values(sites), special_ids=SPECIAL)
    late = [torch.zeros(D_MLP, dtype=torch.bool), torch.arange(D_MLP) % 4 == 0]
    return {
        "whole": whole,
        "quadrant": frozen_mask(chosen, sites, quadrant, special_ids=SPECIAL),
        "late": frozen_mask(late, sites, quadrant, special_ids=SPECIAL),
    }


def effects_of(model: Any, size: int, **of: Any) -> Effects:
    return measured_under(model, cut_masks(model), size=size, **of)


def measured_under(
    model: Any,
    masks: dict[str, Any],
    texts: list[list[int]] = TEXTS,
    size: int = 4,
    **of: Any,
) -> Effects:
    effects = Effects.none(masks, {"whole": 3})
    batches = batched(texts, size, 0, torch.device("cpu"))
    token_effects(model, batches, masks, special_ids=SPECIAL, effects=effects, **of)
    return effects


@torch.no_grad()
def plain(model: Any, text: list[int]) -> list[dict[str, Any]]:
    """Every measure at every predicting token of a text, one by one."""
    hidden: list[Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(
        lambda _, args: hidden.append(args[0])
    )
    logits = model(torch.tensor([text])).logits[0]
    handle.remove()
    eps = model.model.norm.variance_epsilon
    rows = []
    for place in range(len(text) - 1):
        p = torch.exp(logits[place] - torch.logsumexp(logits[place], 0)).tolist()
        true = p[text[place + 1]]
        mean_square = float((hidden[0][0, place] ** 2).mean())
        rows.append(
            {
                "loss": -math.log(true),
                "entropy": -sum(q * math.log(q) for q in p),
                "rank": 1 + sum(q > true for q in p),
                "log_scale": math.log(math.sqrt(mean_square + eps)),
                "p": p,
            }
        )
    return rows


def counted(text: list[int]) -> list[int]:
    return [i for i in range(1, len(text) - 1) if text[i] != 2]


@pytest.mark.parametrize("size", [1, 4])
def test_measures_are_those_of_one_text_at_a_time(model: Any, size: int):
    """Padding, batches and spared positions change no number."""
    effects = effects_of(model, size)
    for name, mask in cut_masks(model).items():
        clean, cut = [], []
        for text in TEXTS:
            places = counted(text)
            clean += [plain(model, text)[i] for i in places]
            with mask.applied(model):
                cut += [plain(model, text)[i] for i in places]
        assert effects.n_tokens == len(clean) == sum(max(n - 2, 0) for n in LENGTHS)
        assert effects.n_texts == len(TEXTS)
        for measure in ("loss", "entropy", "rank", "log_scale"):
            before = np.array([row[measure] for row in clean])
            after = np.array([row[measure] for row in cut])
            assert effects.clean[measure].mean == pytest.approx(before.mean())
            found = effects.of[name]
            assert found.ablated[measure].mean == pytest.approx(after.mean())
            difference = found.difference[measure].described()
            assert difference["mean"] == pytest.approx((after - before).mean())
            assert difference["least"] == pytest.approx((after - before).min())
            median = np.quantile(after - before, 0.5, method="inverted_cdf")
            assert difference["quantiles"][3] == pytest.approx(
                median, rel=0.01, abs=1e-6
            )
            assert abs(difference["mean"]) > 1e-6


def test_blocks_below_the_first_ablated_neuron_run_once_a_batch(model: Any):
    runs = [0, 0]

    def count(layer: int) -> Any:
        def one(*_: Any) -> None:
            runs[layer] += 1

        return one

    handles = [
        block.mlp.register_forward_hook(count(n))
        for n, block in enumerate(model.model.layers)
    ]
    effects_of(model, 3)
    for handle in handles:
        handle.remove()
    assert runs == [3 * 3, 3 * 4]  # three batches: clean, whole, quadrant, late


def test_an_ablation_that_takes_turns_sees_its_own_batches_alone(model: Any):
    turns = {"quadrant": (1, 3), "late": (2, 3)}
    effects = effects_of(model, 2, turns=turns)
    batches = [TEXTS[i : i + 2] for i in range(0, len(TEXTS), 2)]
    for name, (turn, n) in turns.items():
        own = [text for batch in batches[turn::n] for text in batch]
        alone = measured_under(model, {name: cut_masks(model)[name]}, own, size=2)
        assert 0 < effects.of[name].n_tokens == alone.n_tokens < effects.n_tokens
        for measure, stream in alone.of[name].difference.items():
            found = effects.of[name].difference[measure]
            assert found.sums.tolist() == pytest.approx(stream.sums.tolist())
    assert effects.of["whole"].n_tokens == effects.n_tokens


def test_an_empty_set_changes_no_token_to_the_bit(model: Any):
    empty = {
        name: frozen_mask(
            [torch.zeros(D_MLP, dtype=torch.bool)] * 2, mask.sites, mask.ablated
        )
        for name, mask in cut_masks(model).items()
    }
    effects = measured_under(model, empty)
    for effect in effects.of.values():
        for stream in effect.difference.values():
            assert (stream.quantiles.least, stream.quantiles.greatest) == (0.0, 0.0)


@pytest.mark.parametrize("changed_by", ["entropy", "loss"])
def test_the_most_changed_texts_are_those_of_a_sorted_list(model: Any, changed_by: str):
    effects = effects_of(model, 2, changed_by=changed_by)
    shown = effects.of["whole"].most_changed
    assert shown is not None
    mask, candidates = cut_masks(model)["whole"], []
    for number, text in enumerate(TEXTS):
        before = plain(model, text)
        with mask.applied(model):
            after = plain(model, text)
        of_text = [
            (
                abs(after[i][changed_by] - before[i][changed_by]),
                number,
                i,
                before,
                after,
            )
            for i in counted(text)
        ]
        candidates += [max(of_text, key=lambda c: c[0])] if of_text else []
    best = sorted(candidates, key=lambda c: -c[0])[:3]
    found = shown.found()
    assert [(c.text, c.position) for c in found] == [(c[1], c[2]) for c in best]
    for change, (size, number, place, before, after) in zip(found, best, strict=True):
        assert change.size == pytest.approx(size)
        assert change.ids == TEXTS[number][: place + 2]
        gain = np.array(after[place]["p"]) - np.array(before[place]["p"])
        order = np.argsort(-gain)
        assert [t for t, _ in change.promoted] == order[:8].tolist()
        assert [t for t, _ in change.suppressed] == order[::-1][:8].tolist()
        assert change.suppressed[0][1] == pytest.approx(gain.min(), rel=1e-4)


def test_frequencies_are_counted_neuron_by_neuron(model: Any):
    """Also within the clean pass of `token_effects`, which runs each text once."""
    sites = sites_of(model, ["neurons"])
    checkpoint = checkpoint_of(model, "tiny")
    flipped = flipped_of(checkpoint, "folded")
    assert 0 < int(flipped[0].sum()) < D_MLP
    batches = [
        (
            {"input_ids": t.ids, "attention_mask": t.attention},
            torch.nn.functional.pad(t.where(SPECIAL), (0, 1)),
        )
        for t in batched(TEXTS, 4, 0, torch.device("cpu"))
    ]
    found = activity_of(model, sites, batches, flipped)
    posts: list[Tensor] = []
    gates: list[Tensor] = []
    layer = model.model.layers[1].mlp
    layer.down_proj.register_forward_pre_hook(lambda _, args: posts.append(args[0][0]))
    layer.gate_proj.register_forward_hook(lambda _, __, out: gates.append(out[0]))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    rows = [
        (g[i], p[i])
        for g, p, t in zip(gates, posts, TEXTS, strict=True)
        for i in counted(t)
    ]
    for unit in (0, 7, 33):
        sign = -1 if flipped[1][unit] else 1
        pairs = [(g[unit].item(), sign * p[unit].item()) for g, p in rows]
        numbers = dict.fromkeys(QUADRANTS, 0)
        for g, p in pairs:
            numbers[f"gate{'+' if g > 0 else '-'}/post{'+' if p > 0 else '-'}"] += 1
        assert found.layers[1].quadrants[:, unit].tolist() == list(numbers.values())
        on = sum(g > 0 for g, _ in pairs) / len(pairs)
        assert found.on()[1][unit].item() == pytest.approx(on)
        size = sum(abs(p) for _, p in pairs) / len(pairs)
        assert found.layers[1].mean_size[unit].item() == pytest.approx(size)
    again = Activity(sites, flipped)
    effects_of(
        model,
        3,
        seen_clean=lambda where: watching(model, sites, where, again.see),
    )
    assert torch.equal(again.layers[1].quadrants, found.layers[1].quadrants)
    cosines = [
        cosines_of_layer(mlps_of_layer(checkpoint, n, "folded")) for n in range(2)
    ]
    r = found.correlations(cosines)[1]["on:in_out"]
    expected = np.corrcoef(found.on()[1], cosines[1].in_out.double())[0, 1]
    assert r == pytest.approx(expected)
    chosen = [torch.zeros(D_MLP, dtype=torch.bool), torch.arange(D_MLP) == 7]
    of_one = found.of(chosen, [c.norm_out for c in cosines])
    assert sum(of_one[q] for q in QUADRANTS) == pytest.approx(1.0)
    written = found.layers[1].mean_size[7] * cosines[1].norm_out[7]
    assert of_one["written"] == pytest.approx(float(written))


def test_a_correlation_with_a_constant_is_none_and_no_tokens_are_refused(model: Any):
    assert pearson(torch.ones(3), torch.rand(3)) is None
    assert pearson(
        torch.tensor([1.0, 2, 3]), torch.tensor([6.0, 4, 2])
    ) == pytest.approx(-1)
    sites = sites_of(model, ["neurons"])
    with pytest.raises(UserError, match="at least one token"):
        activity_of(model, sites, [], flipped_of(checkpoint_of(model, "t"), "raw"))
