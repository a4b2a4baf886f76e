"""Images of handwritten digits: scikit-learn's, an MNIST folder, or a hub data set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from sklearn.datasets import load_digits
from torch import Tensor

from data.idx import PARTS, read_labelled_images
from storage.errors import UserError

N_DIGITS = 10
MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081  # of pixels in [0, 1], training images
SMALL_MEAN, SMALL_DEVIATION = 0.3053, 0.3760  # the same of scikit-learn's digits


@dataclass(frozen=True)
class DigitImages:
    """Every image of a data set; those from `n_train` on are its published test set."""

    pixels: UInt8[Tensor, "image pixel"]
    digits: Int[Tensor, "image"]
    brightest: int
    """Pixel value of full ink."""
    mean: float
    deviation: float
    """Mean and standard deviation of the pixels divided by `brightest`."""
    n_train: int | None = None
    """None when the data set has no test set of its own."""

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
    """The 1,797 images of 8 x 8 pixels with 17 grey levels that scikit-learn carries.

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
        UserError: When `folder` is none, a file is missing or malformed, the two image
            sizes differ, or a label is not a digit.
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
