"""Digit images: normalisation, the built-in set, MNIST folders and hub tables."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from circuitcut.data.digits.digits import (
    MNIST_DEVIATION,
    MNIST_MEAN,
    builtin_digits,
    digits_from_folder,
    digits_from_hub,
)
from circuitcut.storage.errors import UserError
from tests.data.digits.test_idx import idx_bytes


def write_folder(
    folder: Path, images: torch.Tensor, labels: torch.Tensor, **replaced: bytes
) -> None:
    for part in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{part}-{name}-ubyte").write_bytes(idx_bytes(values))
    for name, content in replaced.items():
        (folder / (name.replace("_", "-") + "-ubyte")).write_bytes(content)


def test_normalised_pixels_have_the_mean_and_deviation_they_are_named_for():
    images = builtin_digits()
    pixels = images.normalised(torch.arange(len(images.digits))).double()
    assert abs(pixels.mean().item()) < 1e-3
    assert abs(pixels.std().item() - 1) < 1e-3


def test_the_builtin_set_is_the_published_one():
    images = builtin_digits()
    assert images.pixels.shape == (1797, 64)
    assert images.digits.bincount().tolist() == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    assert images.pixels.max() == images.brightest


def test_a_folder_is_read_training_images_first(tmp_path: Path):
    write_folder(
        tmp_path,
        torch.full((4, 2, 2), 255),
        torch.tensor([3, 1, 4, 1]),
        t10k_images_idx3=idx_bytes(torch.zeros(1, 2, 2)),
        t10k_labels_idx1=idx_bytes(torch.tensor([5])),
    )
    images = digits_from_folder(tmp_path)
    assert images.n_train == 4
    assert images.digits.tolist() == [3, 1, 4, 1, 5]
    brightest, darkest = images.normalised(torch.tensor([0, 4]))
    expected = torch.tensor([1 - MNIST_MEAN, -MNIST_MEAN]) / MNIST_DEVIATION
    torch.testing.assert_close(brightest, expected[0].expand(4))
    torch.testing.assert_close(darkest, expected[1].expand(4))


def test_images_of_two_sizes_are_refused(tmp_path: Path):
    larger = idx_bytes(torch.zeros(2, 3, 3))
    write_folder(tmp_path, torch.zeros(2, 2, 2), torch.ones(2), t10k_images_idx3=larger)
    with pytest.raises(UserError, match=r"images are 2 x 2 pixels but test images 3 x"):
        digits_from_folder(tmp_path)


def test_a_label_that_is_no_digit_is_named_with_its_place(tmp_path: Path):
    labels = idx_bytes(torch.tensor([1, 12]))
    write_folder(tmp_path, torch.zeros(2, 2, 2), torch.ones(2), t10k_labels_idx1=labels)
    with pytest.raises(UserError, match=r"test label 1 must be a digit .* got 12"):
        digits_from_folder(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="must be a folder with the four MNIST files"):
        digits_from_folder(path)


def hub_part(n: int, size: int = 2) -> Dataset:
    pictures = [Image.fromarray(np.full((size, size), i, np.uint8)) for i in range(n)]
    return Dataset.from_dict({"image": pictures, "label": list(range(n))})


def test_a_hub_table_gives_the_pixels_of_its_images(monkeypatch: pytest.MonkeyPatch):
    parts = {"train": hub_part(4), "test": hub_part(2)}
    monkeypatch.setattr("circuitcut.data.digits.digits.load_hub", lambda *_: parts)
    images = digits_from_hub("hub:somebody/digits")
    assert images.n_train == 4
    assert images.digits.tolist() == [0, 1, 2, 3, 0, 1]
    assert images.pixels[:, 0].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": hub_part(2)}, r"parts train and test, got \['train'\]"),
        ({"train": hub_part(2), "test": hub_part(2, 3)}, "2 x 2 pixels but .* 3 x 3"),
        ({"train": hub_part(11), "test": hub_part(2)}, "digits from 0 to 9, got"),
        (
            {"train": hub_part(2).rename_column("label", "y"), "test": hub_part(2)},
            "part train must have a column 'label', got .*label_column",
        ),
        (
            {"train": Dataset.from_dict({"image": ["a"], "label": [0]})} | {"test": 0},
            "must hold images, got a str",
        ),
    ],
)
def test_a_hub_table_of_another_shape_is_refused(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Dataset], message: str
):
    monkeypatch.setattr("circuitcut.data.digits.digits.load_hub", lambda *_: parts)
    with pytest.raises(UserError, match=message):
        digits_from_hub("hub:somebody/digits")
