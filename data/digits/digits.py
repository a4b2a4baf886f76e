"""Images of handwritten digits from scikit-learn, an MNIST folder or the hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from circuitcut.data.digits.idx import PARTS, read_labelled_images
from circuitcut.data.hub import load_hub
from circuitcut.storage.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

N_DIGITS = 10
# mean and standard deviation of the pixels, scaled to [0, 1], of the training images
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081
SMALL_MEAN, SMALL_DEVIATION = 0.3053, 0.3760  # of scikit-learn's digits


@dataclass(frozen=True)
class DigitImages:
    """All images of a data set: first `n_train` training images, then the test set."""

    pixels: UInt8[Tensor, "image pixel"]
    digits: Int[Tensor, "image"]
    brightest: int
    """Pixel value of full ink."""
    mean: float
    deviation: float
    """Mean and standard deviation of the pixels divided by `brightest`."""
    n_train: int | None = None
    """None when the data set has no official test set."""

    def normalised(self, index: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen pixel"]:
        """Images `index`, (pixel / brightest - mean) / deviation, in float32."""
        return (
            self.pixels[index].float() / self.brightest - self.mean
        ) / self.deviation

    def fingerprint(self) -> str:
        """SHA-256 hex digest of every pixel and label."""
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.digits.numpy().tobytes())
        return digest.hexdigest()


def builtin_digits() -> DigitImages:
    """The 1,797 images of 8 x 8 pixels with 17 grey levels in scikit-learn.

    E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits",
    https://archive.ics.uci.edu/dataset/80.
    """
    loaded = load_digits()
    return DigitImages(
        torch.from_numpy(loaded.data).to(torch.uint8),
        torch.from_numpy(loaded.target).long(),
        brightest=16,
        mean=SMALL_MEAN,
        deviation=SMALL_DEVIATION,
    )


def digits_from_folder(folder: Path) -> DigitImages:
    """The training and test images of a folder that holds the four MNIST files.

    Raises:
        UserError: When `folder` is not a folder, a file is missing or malformed,
            training and test images differ in size, or a label is not a digit.
    """
    if not folder.is_dir():
        raise UserError(
            f"argument data must be a folder with the four MNIST files, got {folder}"
        )
    (train, train_labels), (test, test_labels) = (
        read_labelled_images(folder, part) for part in PARTS
    )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{folder}: training images are {_size(train)} pixels but test images "
            f"{_size(test)}; take both from one release"
        )
    digits = torch.cat([train_labels, test_labels])
    return _mnist_like(torch.cat([train, test]), digits, len(train), str(folder))


def digits_from_hub(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DigitImages:
    """The parts `train` and `test` of a hub data set of grey images, such as MNIST.

    Args:
        image_column: Default `image`.
        label_column: Default `label`; whole numbers from 0 to 9.

    Raises:
        UserError: When a part or column is missing, images differ in size, or a label
            is not a digit.
    """
    parts = load_hub(name, config, revision)
    missing = sorted({"train", "test"} - parts.keys())
    if missing:
        raise UserError(
            f"{name} must have the parts train and test, got {sorted(parts)}; choose "
            "another data set or --hub_config"
        )
    columns = image_column or "image", label_column or "label"
    train, train_labels = _table_images(parts["train"], f"{name}, part train", columns)
    test, test_labels = _table_images(parts["test"], f"{name}, part test", columns)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{name}: training images are {_size(train)} pixels but test images "
            f"{_size(test)}; choose a data set of one image size"
        )
    digits = torch.cat([train_labels, test_labels])
    return _mnist_like(torch.cat([train, test]), digits, len(train), name)


def _table_images(
    table: "Dataset", source: str, columns: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    for column, flag in zip(columns, ("text_column", "label_column"), strict=True):
        if column not in table.column_names:
            raise UserError(
                f"{source} must have a column {column!r}, got {table.column_names}; "
                f"name one with --{flag}"
            )
    image_column, label_column = columns
    images = [_grey(entry, source) for entry in table[image_column]]
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise UserError(
            f"{source} must hold images of one size, got {len(sizes)} sizes"
        )
    labels = list(table[label_column])
    if not all(isinstance(label, int) and 0 <= label < N_DIGITS for label in labels):
        raise UserError(
            f"{source}: column {label_column!r} must hold digits from 0 to 9, got "
            f"{sorted(set(map(str, labels)))[:12]}"
        )
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _grey(entry: object, source: str) -> np.ndarray:
    if not isinstance(entry, Image.Image):
        raise UserError(f"{source} must hold images, got a {type(entry).__name__}")
    return np.asarray(entry.convert("L"))


def _mnist_like(
    images: Tensor, labels: Tensor, n_train: int, source: str
) -> DigitImages:
    if labels.max() >= N_DIGITS:
        item = int((labels >= N_DIGITS).nonzero()[0])
        part, item = ("training", item) if item < n_train else ("test", item - n_train)
        raise UserError(
            f"{source}: {part} label {item} must be a digit from 0 to 9, got "
            f"{int(labels.max())}"
        )
    return DigitImages(
        images.flatten(1),
        labels.long(),
        brightest=255,
        mean=MNIST_MEAN,
        deviation=MNIST_DEVIATION,
        n_train=n_train,
    )


def _size(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[1:]))
