"""Causal tracing: limits that are known, and plain hooks beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuitcut.attribution.tracing import (
    PromptRuns,
    Trace,
    TracedPrompt,
    TraceSettings,
    effects_table,
    embedding_deviation,
    token_classes,
    traces,
    window_of,
)
from circuitcut.models.architectures import block_paths, sites_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import tiny_model

# a subject of three tokens, an object of two, both predicted behind the prompt
PROMPT = TracedPrompt((7, 9, 11, 13, 15, 17, 19), (1, 4), (5, 6), (19, 21))
SHORT = TracedPrompt((8, 10, 12), (1, 2), (2,), (30,))
SETTINGS = TraceSettings(n_noise=3, window=2, noise=3.0)
KINDS = ("hidden", "mlp", "attention")


def double(kind: str) -> Any:
    head = "masked_lm" if kind == "bert" else "causal_lm"
    return tiny_model(kind, head).double().requires_grad_(False)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "bert"])
def test_restored_states_are_those_that_plain_hooks_put_in(kind: str):
    model = double(kind)
    sigma = embedding_deviation(model, [PROMPT])
    runs = PromptRuns.of(model, PROMPT, SETTINGS, sigma, 0)
    paths = {
        "hidden": block_paths(model),
        "mlp": [site.module for site in sites_of(model, ["neurons"])],
        "attention": [site.module for site in sites_of(model, ["heads"])],
    }
    noise = runs.noise
    assert noise.std().item() == pytest.approx(3 * sigma, rel=0.2)

    def probability(draw: int | None, restore: dict[str, Any], token: int) -> float:
        """One row, no replay: noise on the embeddings, states put in one by one."""
        hooks = []
        if draw is not None:

            def corrupt(_: Any, __: Any, output: Any, draw: int = draw) -> Any:
                output = output.clone()
                output[0, 1:4] += noise[draw]
                return output

            embedding = model.get_input_embeddings()
            hooks.append(embedding.register_forward_hook(corrupt))
        for path, clean in restore.items():

            def put(_: Any, __: Any, output: Any, clean: Any = clean) -> Any:
                state = (output[0] if isinstance(output, tuple) else output).clone()
                state.view(7, -1)[token] = clean[token]
                return (state, *output[1:]) if isinstance(output, tuple) else state

            hooks.append(model.get_submodule(path).register_forward_hook(put))
        logits = model(input_ids=torch.tensor([PROMPT.input_ids])).logits[0]
        for hook in hooks:
            hook.remove()
        p = logits.softmax(-1)
        return (p[5, 19] * p[6, 21]).item()

    states: dict[str, Any] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: states.update(
                {path: (output[0] if isinstance(output, tuple) else output).view(7, -1)}
            )
        )
        for of_kind in paths.values()
        for path in of_kind
    ]
    clean = probability(None, {}, 0)
    for hook in hooks:
        hook.remove()
    corrupted = np.mean([probability(draw, {}, 0) for draw in range(3)])
    assert runs.clean == pytest.approx(clean, rel=1e-9)
    assert runs.corrupted == pytest.approx(corrupted, rel=1e-9)
    assert abs(clean - corrupted) > 1e-3 * clean
    for restored in KINDS:
        for layer in (0, 1):
            width = 1 if restored == "hidden" else 2
            window = window_of(layer, width, 2)
            found = runs.restored(restored, layer, [(token,) for token in range(6)])
            restore = {paths[restored][i]: states[paths[restored][i]] for i in window}
            expected = [
                np.mean([probability(draw, restore, token) for draw in range(3)])
                for token in range(6)
            ]
            np.testing.assert_allclose(found, expected, rtol=1e-9)
            assert np.ptp(expected) > 1e-4 * clean


def test_everything_restored_gives_the_clean_probability():
    model = double("gpt2")
    runs = PromptRuns.of(model, PROMPT, SETTINGS, 1.0, 0)
    every = [tuple(range(7))]
    for layer in (0, 1):
        (value,) = runs.restored("hidden", layer, every)
        assert value == pytest.approx(runs.clean, rel=1e-12)
    assert runs.corrupted != pytest.approx(runs.clean, rel=1e-3)
    (nothing,) = runs.restored("mlp", 0, [()])
    assert nothing == pytest.approx(runs.corrupted, rel=1e-12)


def test_without_noise_there_is_no_effect():
    model = double("llama")
    settings = replace(SETTINGS, noise=0.0)
    found = traces(model, [PROMPT, SHORT], settings)
    for trace in found:
        assert trace.corrupted == pytest.approx(trace.clean, rel=1e-12)
        for values in trace.restored.values():
            np.testing.assert_allclose(values, trace.clean, rtol=1e-12)


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_model_as_it_was():
    model = tiny_model("gpt2", "causal_lm").requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (traces(model, [SHORT, PROMPT], SETTINGS) for _ in range(2))
    other = traces(model, [SHORT, PROMPT], replace(SETTINGS, seed=1))
    for one, two, three in zip(first, again, other, strict=True):
        assert (one.clean, one.corrupted) == (two.clean, two.corrupted)
        assert one.corrupted != three.corrupted
        for kind in KINDS:
            assert one.restored[kind].tolist() == two.restored[kind].tolist()
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_tokens_are_classed_by_the_subject_and_the_prediction():
    assert token_classes(PROMPT) == [
        *("before", "first subject", "middle subject", "last subject", "after", "last")
    ]
    assert token_classes(SHORT) == ["before", "last subject", "last"]
    at_end = TracedPrompt((5, 6, 7), (1, 3), (2,), (9,))
    assert token_classes(at_end) == ["before", "first subject", "last subject"]
    mask_first = TracedPrompt((5, 6, 7, 8), (2, 4), (0,), (9,))
    assert token_classes(mask_first) == [
        *("last", "before", "first subject", "last subject")
    ]
    with pytest.raises(UserError, match="tokens of the prompt's 3, got 2 to 4"):
        TracedPrompt((5, 6, 7), (2, 4), (2,), (9,))


def test_windows_are_those_of_the_paper():
    assert list(window_of(5, 4, 12)) == [3, 4, 5, 6]
    assert list(window_of(5, 1, 12)) == [5]
    assert list(window_of(0, 10, 12)) == [0, 1, 2, 3, 4]
    assert list(window_of(11, 3, 12)) == [10, 11]


def test_effects_are_means_over_tokens_then_sums_over_prompts():
    settings = TraceSettings(restored=("hidden",))
    two_before = TracedPrompt((1, 2, 3, 4), (2, 3), (3,), (9,))
    found = [
        Trace(0.9, 0.1, {"hidden": np.array([[0.1, 0.3, 0.5, 0.9]])}),
        Trace(0.5, 0.3, {"hidden": np.array([[0.4, 0.5, 0.3]])}),
    ]
    rows = effects_table([two_before, SHORT], found, settings, [7])
    by_class = {row["tokens"]: row for row in rows}
    # before: .1 and .1 of a total of .8 and .2
    assert by_class["before"]["indirect"] == pytest.approx(0.1)
    assert by_class["before"]["normalised"] == pytest.approx(0.2)
    assert by_class["last subject"]["normalised"] == pytest.approx((0.4 + 0.2) / 1.0)
    assert by_class["last"]["normalised"] == pytest.approx(0.8)
    # resampled: one prompt twice, or both
    assert by_class["last subject"]["interval"] == pytest.approx([0.5, 1.0])
    assert {row["layer"] for row in rows} == {7}
    assert all(row["n_prompts"] == 2 for row in rows)
    worse = [Trace(0.1, 0.2, found[0].restored)]
    assert effects_table([two_before], worse, settings, [7])[0]["normalised"] is None
    # nor of noise that hardly does anything
    hardly = [replace(found[0], corrupted=found[0].clean - 1e-4)]
    for row in effects_table([two_before], hardly, settings, [7]):
        assert row["normalised"] is row["interval"] is None
