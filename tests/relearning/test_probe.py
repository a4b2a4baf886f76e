"""Linear probes: planted states, direct forwards as oracle, cuts seen and not seen."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits
from transformers import BertConfig, BertForTokenClassification

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.loading import LoadedModel
from circuitcut.relearning import probe as probe_module
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.probe import (
    LabelledStates,
    hidden_states,
    probe,
    probe_conditions,
)
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Split, Task


def test_planted_states_are_decoded_and_shuffled_labels_are_not(
    task: Task, loaded: LoadedModel
):
    (level,) = probe(task, loaded.model, sites_of(loaded.model, ["hidden"]))
    assert level["layer"] == 0
    assert level["auc"] > 0.98
    assert level["f1"] > 0.9
    assert 0.1 < level["control_auc"] < 0.9
    assert (level["n_train"], level["n_test"]) == (60, 60)


def test_a_cut_of_the_outputs_inputs_leaves_the_concept_decodable(
    task: Task, loaded: LoadedModel, mask: FrozenMask
):
    """The neurons' activations still carry it: that is what the probe is for."""
    sites = sites_of(loaded.model, ["hidden"])
    found = probe_conditions(task, loaded.model, mask, [Condition("cut", "lasting", 0)])
    assert [entry["condition"] for entry in found] == ["cut"]
    assert found[0]["levels"] == probe(task, loaded.model, sites)


def test_controls_are_probed_where_their_model_is_another(
    task: Task, loaded: LoadedModel, mask: FrozenMask
):
    chosen = [
        Condition("cut", "lasting", 0),
        Condition("retain_only", "lasting", 0, 0),
        Condition("never_learned", None, 0),
    ]
    found = probe_conditions(task, loaded.model, mask, chosen)
    assert [entry["condition"] for entry in found] == ["cut"]
    blind = copy.deepcopy(loaded.model)
    with torch.no_grad():
        blind.blocks[0].linear.weight.zero_()
    found = probe_conditions(task, loaded.model, mask, chosen, never_learned=blind)
    assert [entry["condition"] for entry in found] == ["cut", "never_learned"]
    assert [entry["levels"][0]["auc"] > 0.6 for entry in found] == [True, False]


def test_cutting_the_states_themselves_brings_the_probe_to_chance(
    task: Task, loaded: LoadedModel
):
    """The concept's blob is at the origin of what is left."""
    sites = sites_of(loaded.model, ["hidden"])
    keep = {sites[0].name: torch.zeros(sites[0].n_units, dtype=torch.bool)}
    mask = FrozenMask(keep, sites, zero_values(sites))
    with mask.applied(loaded.model):
        (level,) = probe(task, loaded.model, sites)
    assert level["auc"] == 0.5


def test_scores_are_scikit_learns(task: Task, loaded: LoadedModel):
    sites = sites_of(loaded.model, ["hidden"])
    train, test = (
        hidden_states(task, loaded.model, sites, split, 4000, 32, 0)
        for split in ("relearn", "heldout")
    )
    scaler = StandardScaler().fit(train.states[0])
    oracle = LogisticRegression(C=0.1, class_weight="balanced", max_iter=300)
    oracle.fit(scaler.transform(train.states[0]), train.is_concept)
    decided = oracle.decision_function(scaler.transform(test.states[0]))
    (level,) = probe(task, loaded.model, sites)
    assert level["auc"] == pytest.approx(roc_auc_score(test.is_concept, decided))


def test_levels_with_the_same_states_are_fitted_once_for_all_conditions(
    task: Task, bert: BertForTokenClassification, monkeypatch: pytest.MonkeyPatch
):
    """A cut in layer 1 changes neither the embeddings nor layer 0."""
    texts, hidden = _texts(task, mixed=True), sites_of(bert, ["hidden"])
    (site,) = (s for s in sites_of(bert, ["neurons"]) if s.layer == 1)
    keep = {site.name: torch.arange(site.n_units) % 2 == 0}
    mask = FrozenMask(keep, (site,), zero_values([site]))
    alone = {"uncut": probe(texts, bert, hidden)}
    with mask.applied(bert):
        alone["cut"] = probe(texts, bert, hidden)
    fitted, fit = [], probe_module._fit
    monkeypatch.setattr(
        probe_module, "_fit", lambda *given: fitted.append(1) or fit(*given)
    )
    names = [Condition("uncut", None, 0), Condition("cut", "lasting", 0)]
    found = probe_conditions(texts, bert, mask, names)
    assert {entry["condition"]: entry["levels"] for entry in found} == alone
    assert len(fitted) == 2 * (3 + 1)  # with shuffled labels too; 3 levels, then one


def test_one_level_is_never_scored_as_another_of_other_states_or_labels():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((6, 4)).astype(np.float32)
    labels = np.arange(6) % 2 == 0
    one = LabelledStates({0: states, 1: states.copy(), 2: states + 1}, labels)
    other = LabelledStates({0: states}, ~labels)
    digest = probe_module._digest
    assert digest(0, one, one) == digest(1, one, one)
    different = [digest(0, one, one), digest(2, one, one), digest(0, other, one)]
    different.append(digest(0, one, other))
    assert len(set(different)) == 4


def test_probes_are_fitted_on_one_thread_which_ends_with_them(
    task: Task, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    """Two threads took 20 times the processor time of one (4,000 states of 576)."""

    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info()]

    during, fit = [], probe_module._fit
    monkeypatch.setattr(
        probe_module, "_fit", lambda *given: during.append(threads()) or fit(*given)
    )
    with threadpool_limits(2):
        before, of_torch = threads(), torch.get_num_threads()
        probe(task, loaded.model, sites_of(loaded.model, ["hidden"]))
        assert (threads(), torch.get_num_threads()) == (before, of_torch)
    assert 2 in before
    assert during
    assert {n for pools in during for n in pools} == {1}


def test_the_number_of_positions_is_bounded_and_drawn_by_seed(
    task: Task, loaded: LoadedModel
):
    sites = sites_of(loaded.model, ["hidden"])
    first, same, other = (
        hidden_states(task, loaded.model, sites, "heldout", 20, 7, seed)
        for seed in (0, 0, 1)
    )
    assert len(first.is_concept) == 20
    assert np.array_equal(first.states[0], same.states[0])
    assert not np.array_equal(first.states[0], other.states[0])


SEQUENCE = 7


def _texts(task: Task, *, mixed: bool) -> Task:
    """Word positions: tags inside texts, or whole texts of one side."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 30, (10, SEQUENCE), generator=rng)
    real = torch.arange(SEQUENCE) < torch.arange(10).unsqueeze(1) % 4 + 3
    if mixed:
        concept = (torch.arange(SEQUENCE) % 3 == 1) & real
    else:
        concept = (torch.arange(10).unsqueeze(1) % 2 == 0) & real
    batch = {
        "input_ids": ids,
        "attention_mask": real.long(),
        "real": real,
        "concept": concept,
        "retain": real & ~concept,
    }

    class Texts(type(task)):  # type: ignore[misc]
        def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
            for start in range(0, 10, size):
                yield {k: v[start : start + size] for k, v in batch.items()}

    return Texts()


@pytest.fixture(scope="module")
def bert() -> BertForTokenClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
    )
    return BertForTokenClassification(config).train()


def _direct(model: BertForTokenClassification, batch: Batch) -> Any:
    with torch.no_grad():
        return model.eval()(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        ).hidden_states


def test_states_at_word_positions_are_those_of_a_direct_forward(
    task: Task, bert: BertForTokenClassification
):
    texts = _texts(task, mixed=True)
    sites = sites_of(bert, ["hidden"])
    found = hidden_states(texts, bert.train(), sites, "relearn", 4000, 4, 0)
    assert bert.training
    (batch,) = texts.evaluation_batches("relearn", size=10)
    where = batch["real"]
    assert sorted(found.states) == [-1, 0, 1]
    assert np.array_equal(found.is_concept, batch["concept"][where].numpy())
    for level, states in zip((-1, 0, 1), _direct(bert, batch), strict=True):
        oracle = states[where].numpy()
        np.testing.assert_allclose(found.states[level], oracle, atol=1e-5)


def test_whole_texts_are_the_mean_of_their_real_tokens(
    task: Task, bert: BertForTokenClassification
):
    texts = _texts(task, mixed=False)
    found = hidden_states(texts, bert, sites_of(bert, ["hidden"]), "mask", 4000, 3, 0)
    (batch,) = texts.evaluation_batches("mask", size=10)
    states = _direct(bert, batch)[2]
    oracle = [states[i][batch["real"][i]].mean(0).numpy() for i in range(10)]
    np.testing.assert_allclose(found.states[1], np.stack(oracle), atol=1e-5)
    assert found.is_concept.tolist() == [True, False] * 5


def test_data_of_one_side_only_are_refused(task: Task, loaded: LoadedModel):
    class OneSided(type(task)):  # type: ignore[misc]
        def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
            for batch in super().evaluation_batches(split, size=size):
                yield batch | {"concept": torch.zeros_like(batch["concept"])}

    with pytest.raises(UserError, match="must hold concept and retained examples"):
        probe(OneSided(), loaded.model, sites_of(loaded.model, ["hidden"]))
