"""Evaluation: sums by hand, KL in closed form, the bootstrap against its theory."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.tasks import evaluation as evaluation_module
from circuitcut.tasks.base import Outputs, Predictions, Task, rows_of
from circuitcut.tasks.evaluation import (
    Evaluation,
    References,
    bootstrap,
    evaluate,
    evaluate_cuts,
)

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
TARGETS = torch.tensor([0, 1, 1, 1, 0])
CONCEPT = torch.tensor([True, True, False, False, False])


class Lookup(nn.Module):
    """Logits of a table, times a factor that a context can change."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.n_forwards = 0

    def forward(self, pixels: Tensor):
        assert not self.training
        self.n_forwards += 1
        return SimpleNamespace(logits=LOGITS[pixels[:, 0].long()] * self.scale)


class Toy(Task):
    """Five examples, one position each; examples 0 and 1 are the concept."""

    head = "image_classification"
    name = "toy"

    def __init__(self, clusters=(0, 0, 1, 1, 2), unseen=(1, 1, 1, 0, 0)):
        self.clusters, self.is_unseen = torch.tensor(clusters), torch.tensor(unseen)

    @classmethod
    def read(cls, options):
        raise NotImplementedError

    def _examples(self, index: Tensor) -> dict[str, Tensor]:
        return {
            "pixels": index[:, None].float(),
            "targets": TARGETS[index],
            "concept": CONCEPT[index],
            "retain": ~CONCEPT[index],
            "weights": torch.ones(len(index)),
            "cluster": self.clusters[index],
            "unseen": self.is_unseen[index].bool(),
        }

    def batch(self, split, step, *, size, seed):
        return self._examples(torch.arange(size))

    def finetune_batch(self, split, step, *, size, seed, limit=None):
        return self.batch(split, step, size=size, seed=seed)

    def evaluation_batches(self, split, *, size):
        n = self.n_examples(split)
        for start in range(0, n, size):
            yield self._examples(torch.arange(start, min(start + size, n)))

    def counts(self, model, batch):
        right = model(**self.inputs(batch)).logits.argmax(-1) == batch["targets"]
        return {"hits": right.float(), "n": torch.ones(len(right))}

    def summarise(self, counts):
        return {"accuracy": float(counts["hits"] / counts["n"])}

    def n_examples(self, split):
        return 0 if split == "tune" else 5


@contextmanager
def halved(model: Lookup):
    before = model.scale.item()
    model.scale.data.fill_(before / 2)
    try:
        yield
    finally:
        model.scale.data.fill_(before)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_scores_are_those_of_all_examples_whatever_the_batch_size(size: int):
    found = evaluate(Toy(), Lookup(), "heldout", size=size)
    assert found.scores == {"accuracy": pytest.approx(4 / 5)}
    assert found.unseen_scores == {"accuracy": pytest.approx(2 / 3)}
    assert found.counts["hits"].tolist() == [1, 1, 0, 1, 1]
    assert found.n_examples == 5


def test_the_divergence_is_the_mean_over_positions_of_its_closed_form():
    model = Lookup()
    found = evaluate(
        Toy(), model, "heldout", size=2, cut=lambda batch: halved(model), reference=True
    )
    p, q = LOGITS.softmax(-1), (LOGITS / 2).softmax(-1)
    nats = (p * (p / q).log()).sum(-1)
    assert found.scores["kl_concept"] == pytest.approx(nats[CONCEPT].mean().item())
    assert found.scores["kl_retain"] == pytest.approx(nats[~CONCEPT].mean().item())
    unseen = nats[2:3].mean().item()
    assert found.unseen_scores["kl_retain"] == pytest.approx(unseen)
    assert model.scale.item() == 1.0


def test_an_uncut_model_does_not_diverge_from_itself():
    found = evaluate(Toy(), Lookup(), "heldout", reference=True)
    assert found.scores["kl_concept"] == found.scores["kl_retain"] == 0.0


@pytest.mark.parametrize("bytes_left", [2**20, 0])
def test_kept_references_give_the_same_scores_in_fewer_forwards(bytes_left: int):
    model, kept = Lookup(), References(bytes_left=bytes_left)
    found = [
        evaluate(
            Toy(), model, "heldout", size=2, cut=lambda _: halved(model), reference=kept
        ).scores
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert model.n_forwards == (3 + 3 + 3 if bytes_left else 3 + 3 + 3 + 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_comes_back_also_after_an_error(training: bool):
    model = Lookup().train(training)
    evaluate(Toy(), model, "heldout")
    assert model.training is training
    with pytest.raises(RuntimeError, match="inside the cut"):
        evaluate(Toy(), model, "heldout", cut=broken)
    assert model.training is training


@contextmanager
def broken(batch):
    raise RuntimeError("inside the cut")
    yield


def test_a_limit_takes_that_many_examples_and_an_empty_split_is_refused():
    found = evaluate(Toy(), Lookup(), "heldout", size=2, limit=3)
    assert found.counts["hits"].tolist() == [1, 1, 0]
    with pytest.raises(UserError, match="has no examples"):
        evaluate(Toy(), Lookup(), "tune")


def test_without_unseen_examples_there_are_no_unseen_scores():
    found = evaluate(Toy(unseen=(0,) * 5), Lookup(), "heldout")
    assert found.unseen_scores == {}
    assert bootstrap(Toy(), found, n_resamples=5, unseen=True) == {}


def coins(n_clusters: int, cluster_size: int, share: float) -> Evaluation:
    """Clusters whose examples are all hits or all misses."""
    n_hits = round(share * n_clusters)
    hits = (torch.arange(n_clusters) < n_hits).double().repeat_interleave(cluster_size)
    return Evaluation(
        scores={"accuracy": hits.mean().item()},
        unseen_scores={},
        counts={"hits": hits, "n": torch.ones_like(hits)},
        clusters=torch.arange(n_clusters).repeat_interleave(cluster_size),
        unseen=torch.ones(len(hits), dtype=torch.bool),
        n_examples=len(hits),
    )


@pytest.mark.parametrize("cluster_size", [1, 7])
def test_the_interval_is_as_wide_as_the_binomial_of_the_clusters(cluster_size: int):
    n_clusters, share = 400, 0.3
    found = coins(n_clusters, cluster_size, share)
    low, high = bootstrap(Toy(), found, n_resamples=4000)["accuracy"]
    deviation = (share * (1 - share) / n_clusters) ** 0.5
    assert low == pytest.approx(share - 1.96 * deviation, abs=0.25 * deviation)
    assert high == pytest.approx(share + 1.96 * deviation, abs=0.25 * deviation)


def test_one_cluster_has_an_interval_of_no_width():
    found = evaluate(Toy(clusters=(3,) * 5), Lookup(), "heldout")
    low, high = bootstrap(Toy(), found, n_resamples=20)["accuracy"]
    assert low == high == pytest.approx(found.scores["accuracy"])


def test_intervals_hold_the_divergences_and_follow_the_seed():
    model = Lookup()
    found = evaluate(
        Toy(), model, "heldout", cut=lambda batch: halved(model), reference=True
    )
    one, same = (bootstrap(Toy(), found, n_resamples=50, seed=1) for _ in range(2))
    assert one == same
    low, high = one["kl_retain"]
    assert low <= found.scores["kl_retain"] <= high


def test_a_score_that_no_resample_defines_has_an_undefined_interval():
    class Undefined(Toy):
        def summarise(self, counts):
            return {"accuracy": float("nan")}

    low, high = bootstrap(Undefined(), coins(5, 1, 0.4), n_resamples=10)["accuracy"]
    assert low != low
    assert high != high


@pytest.mark.parametrize(("level", "n_resamples"), [(0.0, 10), (1.0, 10), (0.95, 0)])
def test_levels_and_counts_out_of_range_are_refused(level: float, n_resamples: int):
    with pytest.raises(UserError, match="level must lie in"):
        bootstrap(Toy(), coins(5, 1, 0.4), level=level, n_resamples=n_resamples)


def test_outputs_are_read_at_the_positions_of_each_behaviour():
    batch = Toy().batch("heldout", 0, size=5, seed=0)
    outputs = Toy().outputs(Lookup().eval(), batch)
    assert isinstance(outputs, Outputs)
    assert isinstance(outputs.concept, Predictions)
    torch.testing.assert_close(outputs.concept.logits, LOGITS[CONCEPT])
    torch.testing.assert_close(outputs.retain.targets, TARGETS[~CONCEPT])


def test_logits_are_copied_only_where_some_are_left_out():
    batch, logits = Toy().batch("heldout", 0, size=5, seed=0), torch.randn(5, 2)
    everywhere, nowhere = torch.ones(5, dtype=torch.bool), torch.zeros(5).bool()
    chosen = {"retain": everywhere, "concept": nowhere}
    toy = Toy()
    toy.logits = lambda model, batch: logits
    outputs = toy.outputs(Lookup(), batch | chosen)
    assert outputs.retain.logits.data_ptr() == logits.data_ptr()
    assert outputs.concept.logits.shape == (0, 2)


@pytest.mark.parametrize("at_once", [2, 4, 2**20])
def test_the_divergence_does_not_depend_on_the_size_of_its_pieces(
    monkeypatch: pytest.MonkeyPatch, at_once: int
):
    whole = evaluate(
        Toy(), model := Lookup(), "heldout", cut=lambda _: halved(model), reference=True
    )
    monkeypatch.setattr(evaluation_module, "_LOGITS_OF_KL", at_once)
    pieces = evaluate(
        Toy(), model, "heldout", cut=lambda _: halved(model), reference=True
    )
    assert pieces.scores == whole.scores
    assert whole.scores["kl_retain"] > 0


def test_every_module_keeps_its_own_mode():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).train()
    model[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]


@contextmanager
def scaled(model: Lookup, factor: float):
    with torch.no_grad():
        model.scale.mul_(factor)
        yield
        model.scale.div_(factor)


@pytest.mark.parametrize("n_bytes", [0, 2**20])
def test_several_cuts_score_as_each_alone_and_share_what_a_batch_needs_once(
    n_bytes: int,
):
    factors, model, task, asked = (0.5, -2.0, 4.0), Lookup(), Toy(), []

    def cuts(batch):
        asked.append(len(batch["targets"]))
        return (scaled(model, factor) for factor in factors)

    references = References(bytes_left=n_bytes)
    several = evaluate_cuts(
        task, model, "heldout", cuts, 3, size=2, reference=references
    )
    assert asked == [2, 2, 1]
    assert model.n_forwards == 3 * (3 + 1)  # batches x (cuts and the uncut model)
    for factor, found in zip(factors, several, strict=True):
        alone = evaluate(
            task,
            model,
            "heldout",
            size=2,
            cut=lambda _, factor=factor: scaled(model, factor),
            reference=True,
        )
        assert found.scores == pytest.approx(alone.scores, nan_ok=True)
        assert torch.equal(found.clusters, alone.clusters)


def test_padding_that_only_left_out_examples_needed_is_dropped():
    batch = {
        "input_ids": torch.arange(12).view(3, 4),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        "cluster": torch.arange(3),
    }
    rows = torch.tensor([True, False, True])
    chosen = rows_of(batch, rows)
    assert chosen["input_ids"].tolist() == [[0, 1, 2], [8, 9, 10]]
    assert chosen["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert chosen["cluster"].tolist() == [0, 2]
    unknown = batch | {"rival_ids": torch.zeros(3, 4)}  # perhaps one a token
    assert rows_of(unknown, rows)["input_ids"].shape == (2, 4)
    assert len(rows_of(batch, ~rows & rows)["cluster"]) == 0
