"""Classification of handwritten digits; one digit, or several, is the concept.

The classes are the ten digits or, as in the published circuit-breaking experiment, five
pairs of digits: a digit of the concept then shares its class with a retained digit. M.
Li, X. Davies and M. Nadeau (2023), "Circuit Breaking: Removing Model Behaviors with
Targeted Ablation", https://arxiv.org/abs/2309.05973.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcut.data.digits.digits import (
    N_DIGITS,
    DigitImages,
    builtin_digits,
    digits_from_folder,
    digits_from_hub,
)
from circuitcut.data.hub import HUB_PREFIX
from circuitcut.data.sampling import draw, draw_from, shuffled
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import (
    SPLITS,
    Batch,
    Head,
    Metric,
    Split,
    Task,
    TaskOptions,
    check_limit,
)
from circuitcut.tasks.settings.mnist import DEFAULTS

# the pairs of the experiment: np.random.seed(0); np.random.permutation(10), in twos
PUBLISHED_PAIRS = ((2, 8), (4, 9), (1, 6), (7, 3), (0, 5))
_GROUPED = "grouped:"
_BUILTIN_SHARES = {"heldout": 0.18, "relearn": 0.09, "tune": 0.08, "mask": 0.15}
_TRAIN_SHARES = {"relearn": 0.05, "tune": 0.05}


@dataclass(frozen=True)
class DigitCorpus:
    """Images, their classes, and the image numbers of every split."""

    images: DigitImages
    labels: list[str]
    """Class names: "0".."9", or pairs like "7 or 3"."""
    class_of_digit: Int[Tensor, "digit"]
    concept_digits: tuple[int, ...]
    index: dict[Split, Int[Tensor, "image"]]
    """Image numbers; if the data have an official test set, `mask` equals `base`."""

    @property
    def n_pixels(self) -> int:
        """Number of inputs of the model."""
        return self.images.pixels.shape[1]

    @property
    def is_grouped(self) -> bool:
        """Whether classes hold more than one digit."""
        return len(self.labels) < N_DIGITS

    def texts(self) -> list[str]:
        """An empty list: images have no text."""
        return []

    def fingerprint(self) -> str:
        """SHA-256 hex digest of pixels and labels."""
        return self.images.fingerprint()


class MnistTask(Task):
    """The concept is the correct classification of images of some digits."""

    name: ClassVar[str] = "mnist"
    head: ClassVar[Head] = "image_classification"
    concept_metric = Metric("concept_accuracy", True, "fraction")
    retain_metric = Metric(
        "retain_accuracy", True, "fraction", 0.0, "accuracy on other digits"
    )
    defaults = DEFAULTS

    @classmethod
    def read(cls, options: TaskOptions) -> DigitCorpus:
        """Read, check and split the images.

        Raises:
            UserError: When the concept is not made of digits, the data cannot be read,
                or a split has no images of the concept or no retained images.
        """
        digits, is_grouped = parse_concept(options.concept or "3")
        images = _read_images(options)
        pairs = PUBLISHED_PAIRS if is_grouped else tuple((d,) for d in range(N_DIGITS))
        class_of_digit = torch.empty(N_DIGITS, dtype=torch.long)
        for label, members in enumerate(pairs):
            class_of_digit[list(members)] = label
        corpus = DigitCorpus(
            images,
            [" or ".join(map(str, members)) for members in pairs],
            class_of_digit,
            digits,
            _split(images, options.split_seed),
        )
        _check_splits(corpus)
        return corpus

    def __init__(
        self,
        corpus: DigitCorpus,
        tokenizer: Any = None,
        options: TaskOptions | None = None,
    ):
        del tokenizer, options  # images have no tokens, and `read` used the options
        self.corpus = corpus
        names = ",".join(map(str, corpus.concept_digits))
        self.concept = _GROUPED * corpus.is_grouped + names
        digits = torch.tensor(corpus.concept_digits)
        named = ", ".join(map(str, corpus.concept_digits))
        named = f"digit{'s' * (len(digits) > 1)} {named}"
        self.concept_metric = replace(self.concept_metric, label=f"accuracy on {named}")
        self._is_concept = torch.isin(corpus.images.digits, digits)
        self._concept_classes = corpus.class_of_digit[digits].unique()
        members = torch.cat(list(corpus.index.values()))
        self._n_splits = members.bincount(minlength=len(corpus.images.digits))
        self._pools = {
            split: (index[self._is_concept[index]], index[~self._is_concept[index]])
            for split, index in corpus.index.items()
        }

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Half concept images, half retained images, each drawn epoch by epoch.

        Raises:
            UserError: When `size` is below 2.
        """
        if size < 2:
            raise UserError(
                f"argument size must be at least 2 (one image of the concept and one "
                f"retained image), got {size}; give a larger batch size"
            )
        sizes = size // 2, size - size // 2
        chosen = [
            pool[draw(len(pool), step, n, "mnist", split, side, seed)]
            for side, (pool, n) in enumerate(
                zip(self._pools[split], sizes, strict=True)
            )
        ]
        return self._batch(torch.cat(chosen))

    def concept_batch(self, split: Split) -> Batch:
        """All images of the concept in `split`, in the order of the split."""
        return self._batch(self._pools[split][0])

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        """Images of the whole split; with `limit`, `limit` concept images of it."""
        pool = self.corpus.index[split]
        if limit is not None:
            concept = self._pools[split][0]
            check_limit(limit, len(concept), split)
            pool = concept[shuffled(len(concept), "mnist", "limit", seed)[:limit]]
        return self._batch(pool[draw(len(pool), step, size, "mnist", "finetune", seed)])

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        """Images of the retained digits, drawn epoch by epoch."""
        pool = self._pools[split][1].tolist()
        chosen = draw_from(pool, step, size, "without concept", split, seed)
        return self._batch(torch.tensor(chosen))

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        """Every image of `split` once, in the order of the data."""
        for piece in self.pieces(split, self.corpus.index[split].tolist(), size):
            yield self._batch(torch.tensor(piece))

    def n_examples(self, split: Split) -> int:
        """Number of images of a split."""
        return len(self.corpus.index[split])

    def counts(
        self, model: nn.Module, batch: Batch
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Per image: 0 or 1 for each event, and the cross-entropy in nats.

        A retained image whose class includes a digit of the concept counts as `mate`,
        any other retained image as `stranger`.
        """
        logits = model(**self.inputs(batch)).logits.float()
        targets, concept, retain = batch["targets"], batch["concept"], batch["retain"]
        concept_classes = self._concept_classes.to(targets.device)
        predicted = logits.argmax(-1)
        hits = predicted == targets
        nats = nn.functional.cross_entropy(logits, targets, reduction="none")
        mate = retain & torch.isin(targets, concept_classes)
        stranger = retain & ~mate
        events = {
            "concept_images": concept,
            "concept_hits": concept & hits,
            "retain_images": retain,
            "retain_hits": retain & hits,
            "mate_images": mate,
            "mate_hits": mate & hits,
            "stranger_images": stranger,
            "stranger_as_concept": stranger & torch.isin(predicted, concept_classes),
        }
        sums = {"concept_nats": nats * concept, "retain_nats": nats * retain}
        return {name: event.float() for name, event in events.items()} | sums

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracies and other shares of images, and cross-entropies in nats/image."""

        def share(of: str, among: str) -> float:
            total = counts[of].double().sum() / counts[among].double().sum()
            return total.item()

        scores = {
            "concept_accuracy": share("concept_hits", "concept_images"),
            "retain_accuracy": share("retain_hits", "retain_images"),
            "concept_nll": share("concept_nats", "concept_images"),
            "retain_nll": share("retain_nats", "retain_images"),
            "retain_as_concept": share("stranger_as_concept", "stranger_images"),
        }
        if self.corpus.is_grouped:
            scores["class_mate_accuracy"] = share("mate_hits", "mate_images")
        return scores

    def concept_classes(
        self, batch: Batch, where: Tensor
    ) -> Int[Tensor, "position concept"]:
        """The classes of the concept's digits; the same for every image."""
        classes = self._concept_classes.to(batch["targets"].device)
        return classes.expand(int(where.sum()), -1)

    def _batch(self, chosen: Int[Tensor, "batch"]) -> Batch:
        images = self.corpus.images
        concept = self._is_concept[chosen]
        return {
            "pixels": images.normalised(chosen),
            "targets": self.corpus.class_of_digit[images.digits[chosen]],
            "concept": concept,
            "retain": ~concept,
            "weights": torch.ones(len(chosen)),
            "real": torch.ones(len(chosen), dtype=torch.bool),
            "cluster": chosen,
            "unseen": self._n_splits[chosen] == 1,
        }


def with_test_behaviour(corpus: DigitCorpus, n_images: int) -> DigitCorpus:
    """The published protocol: the mask is trained on a few concept images of the test.

    The first `n_images` concept images of `heldout` replace all concept images of
    `mask`.

    Raises:
        UserError: When `heldout` has no further concept image.
    """
    digits = torch.tensor(corpus.concept_digits)
    is_concept = torch.isin(corpus.images.digits, digits)
    heldout, mask = corpus.index["heldout"], corpus.index["mask"]
    concept = heldout[is_concept[heldout]]
    if not 0 < n_images < len(concept):
        raise UserError(
            f"argument n_images must lie between 1 and {len(concept) - 1}, got "
            f"{n_images}"
        )
    moved = concept[:n_images]
    index: dict[Split, Tensor] = corpus.index | {
        "heldout": heldout[~torch.isin(heldout, moved)],
        "mask": torch.cat([mask[~is_concept[mask]], moved]),
    }
    return replace(corpus, index=index)


def parse_concept(concept: str) -> tuple[tuple[int, ...], bool]:
    """Digits of `3`, `3,8` or `grouped:3`, and whether classes are pairs of digits.

    Raises:
        UserError: When `concept` is not made of distinct digits or is all of them.
    """
    names = concept.removeprefix(_GROUPED).split(",")
    digits = [name.strip() for name in names]
    known = [str(digit) for digit in range(N_DIGITS)]
    if not set(digits) < set(known) or len(set(digits)) < len(digits):
        raise UserError(
            "argument concept must be distinct digits, not all ten, such as 3 or 3,8, "
            f"or {_GROUPED}3 for the published pairs of digits, got {concept!r}"
        )
    return tuple(sorted(map(int, digits))), concept.startswith(_GROUPED)


def _read_images(options: TaskOptions) -> DigitImages:
    if options.data_format not in ("auto", "idx"):
        raise UserError(
            f"argument data_format must be auto or idx for task mnist, got "
            f"{options.data_format!r}"
        )
    if options.data is None:
        return builtin_digits()
    if options.data.startswith(HUB_PREFIX):
        return digits_from_hub(
            options.data,
            config=options.hub_config,
            revision=options.hub_revision,
            image_column=options.text_column,
            label_column=options.label_column,
        )
    return digits_from_folder(Path(options.data))


def _split(images: DigitImages, seed: int) -> dict[Split, Tensor]:
    """Image numbers of every split; docs/formats.md gives the shares.

    Data without an official test set are split into five disjoint splits. Otherwise the
    test set is `heldout`, `tune` and `relearn` are taken from the training images, and
    the remaining training images are both `base` and `mask`.
    """
    n_images = images.n_train or len(images.digits)
    order = torch.tensor(shuffled(n_images, "mnist", "split", seed))
    index: dict[Split, Tensor] = {}
    shares = _BUILTIN_SHARES if images.n_train is None else _TRAIN_SHARES
    start = 0
    for split in SPLITS:
        if split in shares:
            end = start + round(n_images * shares[split])
            index[split] = order[start:end].sort().values
            start = end
    index["base"] = order[start:].sort().values
    if images.n_train is not None:
        index["mask"] = index["base"]
        index["heldout"] = torch.arange(images.n_train, len(images.digits))
    return index


def _check_splits(corpus: DigitCorpus) -> None:
    for split in SPLITS:
        digits = corpus.images.digits[corpus.index[split]]
        for digit in corpus.concept_digits:
            if not (digits == digit).any():
                raise UserError(
                    f"split {split} must hold images of the concept, got no {digit} "
                    f"among its {len(digits)} images; give more data"
                )
        if torch.isin(digits, torch.tensor(corpus.concept_digits)).all():
            raise UserError(
                f"split {split} must hold images of other digits than the concept's, "
                f"got none among its {len(digits)} images; give more data"
            )
