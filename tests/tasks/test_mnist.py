"""The digits task: splits, batches, classes, and scores worked out by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from circuitcut.data.digits.digits import DigitImages
from circuitcut.storage.errors import UserError
from circuitcut.tasks import mnist
from circuitcut.tasks.base import SPLITS, TaskOptions
from circuitcut.tasks.mnist import (
    PUBLISHED_PAIRS,
    MnistTask,
    parse_concept,
    with_test_behaviour,
)

PARTS = ("base", "mask", "tune", "relearn", "heldout")


class Linear(nn.Module):
    """Logits of a random matrix."""

    def __init__(self, n_pixels: int, n_classes: int, seed: int = 0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.weight = 0.1 * torch.randn(n_pixels, n_classes, generator=rng)

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=pixels @ self.weight)


class Answering(nn.Module):
    """Sure of the class that a table gives for an image's only pixel."""

    def __init__(self, answers: dict[int, int], n_classes: int):
        super().__init__()
        self.answers, self.n_classes = answers, n_classes

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        classes = torch.tensor([self.answers[int(pixel)] for pixel in pixels])
        sure = 10.0 * nn.functional.one_hot(classes, self.n_classes)
        return SimpleNamespace(logits=sure)


def make_task(**options: str) -> MnistTask:
    settings = TaskOptions(**options)
    return MnistTask(MnistTask.read(settings), None, settings)


def images_of(digits: list[int], n_train: int | None = None) -> DigitImages:
    """One pixel per image, holding its digit."""
    values = torch.tensor(digits)
    return DigitImages(
        values.to(torch.uint8).unsqueeze(1), values, 1, 0.0, 1.0, n_train
    )


def scores_of(task: MnistTask, model: nn.Module, split: str, size: int) -> dict:
    found = [task.counts(model, b) for b in task.evaluation_batches(split, size=size)]
    return task.summarise({k: torch.cat([c[k] for c in found]) for k in found[0]})


def test_splits_of_the_builtin_images_share_no_image_and_leave_none_out():
    for seed in (0, 1):
        index = make_task(split_seed=seed).corpus.index
        everything = torch.cat([index[split] for split in PARTS])
        assert everything.sort().values.tolist() == list(range(1797))
    other = make_task().corpus.index["heldout"]
    assert not torch.equal(other, index["heldout"])


def test_a_published_test_set_is_heldout_and_only_base_and_mask_share_images():
    index = mnist._split(images_of([0, 1, 2, 3] * 110, n_train=400), seed=0)
    assert index["heldout"].tolist() == list(range(400, 440))
    assert torch.equal(index["mask"], index["base"])
    for one, other in itertools.combinations(PARTS, 2):
        if {one, other} != {"base", "mask"}:
            assert not set(index[one].tolist()) & set(index[other].tolist())
    assert (len(index["tune"]), len(index["relearn"])) == (20, 20)


def test_the_test_behaviour_moves_a_few_heldout_images_to_the_mask_split():
    corpus = make_task(concept="3,8").corpus
    moved = with_test_behaviour(corpus, 5)
    task = MnistTask(moved, None, TaskOptions())
    shown = task._pools["mask"][0]
    assert set(corpus.images.digits[shown].tolist()) <= {3, 8}
    left = set(corpus.index["heldout"].tolist()) - set(moved.index["heldout"].tolist())
    assert sorted(left) == shown.tolist()
    assert len(left) == 5
    before = MnistTask(corpus, None, TaskOptions())._pools["mask"]
    assert torch.equal(task._pools["mask"][1], before[1])
    for n_images in (0, 1000):
        with pytest.raises(UserError, match=f"n_images must .*got {n_images}"):
            with_test_behaviour(corpus, n_images)


def test_only_images_of_one_split_count_as_unseen(monkeypatch: pytest.MonkeyPatch):
    images = images_of([0, 1, 2, 3] * 110, n_train=400)
    monkeypatch.setattr(mnist, "builtin_digits", lambda: images)
    task = make_task()
    for split in PARTS:
        [batch] = task.evaluation_batches(split, size=1000)
        assert batch["unseen"].unique().tolist() == [split not in ("base", "mask")]


def test_the_published_pairs_are_numpys_permutation_of_seed_0():
    order = np.random.RandomState(0).permutation(10)
    assert [*itertools.chain(*PUBLISHED_PAIRS)] == order.tolist()


def test_scores_agree_with_scikit_learn_and_do_not_depend_on_the_batch_size():
    task = make_task(concept="3,8")
    model = Linear(64, 10)
    scores = scores_of(task, model, "heldout", 323)
    for size in (1, 100):
        assert scores_of(task, model, "heldout", size) == pytest.approx(
            scores, rel=1e-5
        )
    [batch] = task.evaluation_batches("heldout", size=1000)
    logits = model(batch["pixels"]).logits
    for side in ("concept", "retain"):
        chosen = batch[side]
        answers = batch["targets"][chosen].numpy()
        predicted = logits[chosen].argmax(-1).numpy()
        assert scores[f"{side}_accuracy"] == pytest.approx(
            accuracy_score(answers, predicted)
        )
        nats = log_loss(answers, logits[chosen].softmax(-1).numpy(), labels=range(10))
        assert scores[f"{side}_nll"] == pytest.approx(nats, rel=1e-3)


def test_grouped_scores_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        mnist, "builtin_digits", lambda: images_of([3, 7, 2, 8, 3, 7, 0, 5] * 40)
    )
    task = make_task(concept="grouped:3")
    # 7s leave the class "7 or 3", 8s enter it, 5s go elsewhere
    model = Answering({3: 3, 7: 1, 2: 0, 8: 3, 0: 4, 5: 1}, 5)
    [batch] = task.evaluation_batches("heldout", size=1000)
    digits = batch["pixels"].flatten()
    n_eight, n_five, n_seven = (int((digits == d).sum()) for d in (8, 5, 7))
    n_retain, n_other = int((digits != 3).sum()), int((digits != 3).sum()) - n_seven
    scores = scores_of(task, model, "heldout", 64)
    assert scores["concept_accuracy"] == 1.0
    assert scores["class_mate_accuracy"] == 0.0
    assert scores["retain_as_concept"] == pytest.approx(n_eight / n_other)
    wrong = n_eight + n_five + n_seven
    assert scores["retain_accuracy"] == pytest.approx(1 - wrong / n_retain)


def test_the_answer_is_the_class_of_the_concepts_digit():
    task = make_task(concept="grouped:3")
    batch = task.batch("mask", 0, size=8, seed=0)
    outputs = task.outputs(Linear(64, 5), batch)
    assert task.corpus.labels[3] == "7 or 3"
    assert outputs.concept.concept_classes.tolist() == [[3]] * 4
    assert outputs.retain.concept_classes.tolist() == [[3]] * 4
    assert outputs.concept.targets.tolist() == [3] * 4
    assert outputs.concept.rivals is None


def test_a_batch_is_half_concept_and_a_function_of_its_step_and_seed():
    task = make_task(concept="3,8")
    batch = task.batch("mask", 5, size=9, seed=1)
    again = make_task(concept="3,8").batch("mask", 5, size=9, seed=1)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["concept"].tolist() == [True] * 4 + [False] * 5
    assert set(batch["targets"][:4].tolist()) <= {3, 8}
    for step, seed in ((6, 1), (5, 2)):
        other = task.batch("mask", step, size=9, seed=seed)
        assert not torch.equal(batch["cluster"], other["cluster"])
    assert set(batch["cluster"].tolist()) <= set(task.corpus.index["mask"].tolist())


def test_finetuning_sees_every_image_of_a_split_once_an_epoch():
    task = make_task()
    n = task.n_examples("relearn")
    steps = [task.finetune_batch("relearn", s, size=n // 3, seed=0) for s in range(3)]
    seen = torch.cat([batch["cluster"] for batch in steps])
    assert seen.sort().values.tolist() == task.corpus.index["relearn"].tolist()


def test_a_limit_gives_the_same_few_concept_images_at_every_step():
    task = make_task()
    batches = [
        task.finetune_batch("relearn", step, size=8, seed=2, limit=4)
        for step in range(3)
    ]
    chosen = [set(batch["cluster"].tolist()) for batch in batches]
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(chosen[0]) == 4
    assert all(batch["concept"].all() for batch in batches)
    first = task.finetune_batch("relearn", 0, size=8, seed=2, limit=1)
    assert set(first["cluster"].tolist()) < chosen[0]


def test_every_split_has_every_digit_in_the_builtin_data():
    corpus = make_task().corpus
    for split in SPLITS:
        assert corpus.images.digits[corpus.index[split]].unique().numel() == 10


def test_another_concept_keeps_the_images_and_changes_the_fingerprint_only_by_them(
    monkeypatch: pytest.MonkeyPatch,
):
    before = make_task().corpus.fingerprint()
    assert make_task(concept="8").corpus.fingerprint() == before
    changed = images_of([0, 1, 2, 3] * 50)
    monkeypatch.setattr(mnist, "builtin_digits", lambda: changed)
    assert make_task().corpus.fingerprint() != before


@pytest.mark.parametrize(
    ("concept", "parsed"),
    [
        ("3", ((3,), False)),
        ("8, 3", ((3, 8), False)),
        ("grouped:3", ((3,), True)),
        ("grouped:3,7", ((3, 7), True)),
    ],
)
def test_a_concept_is_digits_or_grouped_digits(concept: str, parsed: tuple):
    assert parse_concept(concept) == parsed


@pytest.mark.parametrize(
    ("given", "named"), [(None, "3"), ("8,3", "3,8"), ("grouped:3", "grouped:3")]
)
def test_the_concept_has_a_name_without_the_flag_too(given: str | None, named: str):
    assert make_task(concept=given).concept == named


@pytest.mark.parametrize(
    "concept", ["", "x", "10", "3,3", "-1", "grouped:", "LOC", "0,1,2,3,4,5,6,7,8,9"]
)
def test_any_other_concept_is_refused_with_an_example(concept: str):
    with pytest.raises(UserError, match="argument concept must be distinct digits"):
        parse_concept(concept)


def test_a_digit_missing_from_a_split_is_an_error_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
):
    digits = images_of([0, 1, 2, 4] * 40)
    monkeypatch.setattr(mnist, "builtin_digits", lambda: digits)
    with pytest.raises(UserError, match="got no 3 among"):
        make_task()
    monkeypatch.setattr(mnist, "builtin_digits", lambda: images_of([3] * 100))
    with pytest.raises(UserError, match="images of other digits than the concept's"):
        make_task()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "no/such/folder"}, "must be a folder .* got no/such/folder"),
        ({"data_format": "conll"}, "data_format must be auto or idx"),
    ],
)
def test_other_data_are_refused(options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        make_task(**options)


def test_a_batch_too_small_for_both_halves_is_refused():
    with pytest.raises(UserError, match="size must be at least 2"):
        make_task().batch("mask", 0, size=1, seed=0)
