"""Gradient attributions: exact where effects add up, finite differences elsewhere."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
)

from circuitcut.attribution.gradients import gradient_margin
from circuitcut.attribution.integrated import integrated_gradients_margin
from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.retain_sensitivity import retain_sensitivity
from circuitcut.attribution.subject import Subject
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.gating import gated
from circuitcut.models.architectures import sites_of
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from tests.attribution.toy import (
    N_TOKENS,
    SITES,
    SPECIAL_IDS,
    LinearTokens,
    ToyTask,
    ablation,
    mean_margin,
)
from tests.models.tiny import tiny_model

KINDS = ("zero", "mean", "counterfactual")


def open_but(site: Site, unit: int | None = None) -> dict[str, torch.Tensor]:
    keep = torch.ones(site.n_units, dtype=torch.bool)
    if unit is not None:
        keep[unit] = False
    return {site.name: keep}


def effects(task, model, site: Site, ablated, **settings) -> torch.Tensor:
    """Fall of the margin when a unit is really cut, for the first few units."""
    whole, *cut = (
        mean_margin(task, model, [site], open_but(site, unit), ablated, **settings)
        for unit in [None, *range(min(6, site.n_units))]
    )
    return whole - torch.tensor(cut, dtype=torch.float64)


@pytest.mark.parametrize("special_ids", [(), SPECIAL_IDS])
@pytest.mark.parametrize("ablation_kind", KINDS)
@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_on_a_linear_model_attribution_is_the_effect_of_cutting(
    site: Site, ablation_kind: str, special_ids: tuple[int, ...]
):
    task, model = ToyTask(), LinearTokens()
    ablated = ablation(ablation_kind, task, model, [site])
    settings = {"n_batches": 1, "size": 6, "special_ids": special_ids}
    exact = effects(task, model, site, ablated, **settings)
    assert exact.abs().max() > 1e-3
    for method in ("gradient_margin", "integrated_gradients_margin"):
        scores = METHODS[method](task, model, [site], ablated, **settings)[site.name]
        torch.testing.assert_close(scores[: len(exact)], exact, rtol=1e-4, atol=1e-6)


def test_the_loss_gradient_is_the_rise_of_the_cross_entropy_by_finite_differences():
    task, model, site = ToyTask(3), LinearTokens(3), SITES["neurons"]
    ablated = zero_values([site])
    method = METHODS["gradient_concept_loss"]
    scores = method(task, model, [site], ablated, n_batches=1, size=6)[site.name]
    batch = task.batch("mask", 0, size=6, seed=0)
    where, step = batch["concept"], 1e-5

    def loss(unit: int, value: float) -> float:
        keep = torch.ones(site.n_units, dtype=torch.float64)
        keep[unit] = value
        with gated(model, [site], {site.name: keep}, ablated):
            logits = model(batch["input_ids"]).logits[where]
        nats = torch.nn.functional.cross_entropy(
            logits, batch["targets"][where], reduction="none"
        )
        weights = batch["weights"][where]
        return ((weights * nats).sum() / weights.sum()).item()

    for unit in range(site.n_units):
        slope = (loss(unit, 1 - step) - loss(unit, 1 + step)) / (2 * step)
        assert scores[unit].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def tiny_models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    shape = {"vocab_size": N_TOKENS, "num_labels": 3}
    bert = BertConfig(
        **shape,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    gpt2 = GPT2Config(**shape, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    models = {
        "bert": BertForTokenClassification(bert),
        "gpt2": GPT2ForTokenClassification(gpt2),
    }
    for model in models.values():
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.3)
    return {name: m.double().requires_grad_(False) for name, m in models.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_on_a_transformer_scores_of_all_sites_are_slopes_of_the_cut(name: str):
    task, model = ToyTask(3), tiny_models()[name]
    sites = sites_of(model, MODULE_KINDS)
    ablated = ablation("mean", task, model, sites)
    settings = {"n_batches": 1, "size": 4, "special_ids": SPECIAL_IDS}
    scores = METHODS["gradient_margin"](task, model, sites, ablated, **settings)
    model.eval()
    step = 1e-4
    for site in sites:
        unit = int(scores[site.name].abs().argmax())
        keep = torch.ones(site.n_units, dtype=torch.float64)
        ends = []
        for value in (1 + step, 1 - step):
            keep[unit] = value
            run = mean_margin(
                task, model, [site], {site.name: keep}, ablated, **settings
            )
            ends.append(run)
        slope = (ends[0] - ends[1]) / (2 * step)
        found = scores[site.name][unit].item()
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-6), site.name


def test_integrated_gradients_sum_to_what_the_whole_site_is_worth():
    task, model, site = ToyTask(), LinearTokens(relu=True), SITES["weights"]
    ablated = ablation("mean", task, model, [site])
    closed = {site.name: torch.zeros(site.n_units, dtype=torch.bool)}
    whole, none = (
        mean_margin(task, model, [site], keep, ablated, n_batches=1, size=12)
        for keep in (open_but(site), closed)
    )
    subject = Subject(task, model, (site,), ablated, "mask", 1, 12, 0, ())
    one_step = gradient_margin(subject)[site.name].sum().item()
    gaps = [abs(one_step - (whole - none))]
    for n_steps in (4, 16):
        scores = integrated_gradients_margin(subject, n_steps)[site.name]
        gaps.append(abs(scores.sum().item() - (whole - none)))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02 * abs(whole - none)


def test_the_drawn_sensitivity_is_the_fisher_information_summed_over_answers():
    task, model, site = ToyTask(3), LinearTokens(3), SITES["neurons"]
    ablated = zero_values([site])
    subject = Subject(task, model, (site,), ablated, "mask", 40, 16, 0, SPECIAL_IDS)
    drawn = retain_sensitivity(subject)[site.name]
    exact = fisher_information(task, model, site, task.rows(0, 640))
    torch.testing.assert_close(drawn, exact.sqrt(), rtol=0.2, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_drawn_sensitivity_of_edges_is_their_fisher_information(kind: str):
    task = ToyTask()
    model = tiny_model(kind, "token_classification").double().requires_grad_(False)
    sites = sites_of(model, ["edges"])
    ablated = zero_values(sites)
    subject = Subject(task, model, sites, ablated, "mask", 20, 16, 0, ())
    drawn = retain_sensitivity(subject)
    into_logits, others = sites[-1], sites[:-1]
    exact = fisher_information(
        task, model, into_logits, task.rows(0, 320), beside=others, special_ids=()
    ).sqrt()
    found = drawn[into_logits.name]
    large = exact > 0.1 * exact.max()
    assert int(large.sum()) >= 3
    torch.testing.assert_close(found[large], exact[large], rtol=0.2, atol=0.0)


def fisher_information(
    task, model, site: Site, batch, *, beside=(), special_ids=SPECIAL_IDS
) -> torch.Tensor:
    """Sum over answers of p (d log p / d gate)^2, slopes by finite differences."""
    where, step = batch["retain"], 1e-4
    weights = batch["weights"][where]
    sites = [*beside, site]

    def log_p(unit: int, value: float) -> torch.Tensor:
        keep = {s.name: torch.ones(s.n_units, dtype=torch.float64) for s in sites}
        keep[site.name][unit] = value
        with gated(model, sites, keep, zero_values(sites), special_ids=special_ids):
            logits = model(**task.inputs(batch)).logits
            return logits[where].log_softmax(-1).detach()

    found = []
    for unit in range(site.n_units):
        slopes = (log_p(unit, 1 + step) - log_p(unit, 1 - step)) / (2 * step)
        per_position = (log_p(unit, 1.0).exp() * slopes.square()).sum(1)
        found.append((weights * per_position).sum() / weights.sum())
    return torch.stack(found)


def test_half_the_squared_sensitivity_is_the_divergence_of_a_small_cut():
    task, model, site = ToyTask(3), LinearTokens(3), SITES["hidden"]
    batch = task.batch("mask", 0, size=64, seed=0)
    where, step = batch["retain"], 1e-3
    fisher = fisher_information(task, model, site, batch)
    weights = batch["weights"][where]
    for unit in range(site.n_units):
        keep = torch.ones(site.n_units, dtype=torch.float64)
        keep[unit] -= step
        before = model(batch["input_ids"]).logits[where].log_softmax(-1)
        with gated(
            model,
            [site],
            {site.name: keep},
            zero_values([site]),
            special_ids=SPECIAL_IDS,
        ):
            after = model(batch["input_ids"]).logits[where].log_softmax(-1)
        divergence = (before.exp() * (before - after)).sum(1)
        mean = (weights * divergence).sum() / weights.sum()
        expected = 0.5 * fisher[unit].item() * step**2
        assert mean.item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("sites", "settings", "message"),
    [
        ([], {}, "sites must name at least one site"),
        ([SITES["neurons"]], {"n_batches": 0}, "n_batches must be at least 1, got 0"),
    ],
)
def test_nothing_to_rank_is_refused(sites: list[Site], settings: dict, message: str):
    for method in METHODS.values():
        with pytest.raises(UserError, match=message):
            method(ToyTask(), LinearTokens(), sites, zero_values(sites), **settings)


def test_batches_without_the_concept_are_refused():
    task, sites = ToyTask(), [SITES["neurons"]]
    task.first_concept = N_TOKENS
    for name in ("gradient_margin", "gradient_concept_loss", "greedy_margin"):
        with pytest.raises(UserError, match="gave no position of the behaviour"):
            METHODS[name](task, LinearTokens(), sites, zero_values(sites), n_batches=2)
