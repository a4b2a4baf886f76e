"""IDX files: what is written is read, and every way to be wrong is named."""

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.data.digits.idx import read_idx, read_labelled_images
from circuitcut.storage.errors import UserError


def idx_bytes(values: torch.Tensor) -> bytes:
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    zipped=st.booleans(),
    seed=st.integers(0, 99),
)
def test_reading_gives_back_what_was_written(
    tmp_path_factory, shape: tuple[int, int, int], zipped: bool, seed: int
):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
    content = idx_bytes(values)
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert torch.equal(read_idx(path, n_axes=3), values)


def test_the_published_header_is_understood(tmp_path: Path):
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("0000080100000003") + bytes([5, 0, 4]))
    assert read_idx(path, n_axes=1).tolist() == [5, 0, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "8 bytes, the file holds 0"),
        (
            struct.pack(">II", 2051, 1) + b"1",
            "number 2049, but this file starts with 2051",
        ),
        (
            struct.pack(">II", 2049, 9) + b"12",
            "announces 9 = 9 bytes, the file holds 2",
        ),
        (
            struct.pack(">II", 2049, 1) + b"12",
            "announces 1 = 1 bytes, the file holds 2",
        ),
        (struct.pack(">II", 2049, 0), "announces no items"),
    ],
)
def test_a_malformed_file_is_named_with_what_differs(
    tmp_path: Path, content: bytes, message: str
):
    path = tmp_path / "some-labels"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"some-labels: .*{message}"):
        read_idx(path, n_axes=1)


@pytest.mark.parametrize("keep", [5, 30])
def test_a_truncated_archive_is_named(tmp_path: Path, keep: int):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx_bytes(torch.arange(200)))[:keep])
    with pytest.raises(UserError, match=r"labels\.gz: truncated or not gzip"):
        read_idx(path, n_axes=1)


def test_plain_bytes_under_a_gz_name_are_refused(tmp_path: Path):
    path = tmp_path / "labels.gz"
    path.write_bytes(idx_bytes(torch.arange(3)))
    with pytest.raises(UserError, match="not gzip"):
        read_idx(path, n_axes=1)


def test_a_folder_without_one_of_the_files_names_it(tmp_path: Path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(torch.ones(2, 3, 3)))
    with pytest.raises(UserError, match="has no file train-labels-idx1-ubyte"):
        read_labelled_images(tmp_path, "train")


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path):
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx_bytes(torch.ones(2, 3, 3)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(torch.ones(3)))
    )
    with pytest.raises(UserError, match=r"holds 2 images but .* holds 3 labels"):
        read_labelled_images(tmp_path, "t10k")


def test_the_published_test_set_has_its_published_class_counts():
    shared = os.environ.get("CIRCUITCUT_DATA")
    if not shared:
        pytest.skip("CIRCUITCUT_DATA is not set")
    images, labels = read_labelled_images(Path(shared) / "mnist", "t10k")
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels.bincount().tolist() == counts
    assert images.shape == (10_000, 28, 28)
    assert abs(images.double().mean().item() / 255 - 0.1325) < 5e-5
