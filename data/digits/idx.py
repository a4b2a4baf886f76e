"""Reader of IDX files, the format of MNIST; it checks every header.

A file holds a big-endian header (two zero bytes, 8 for unsigned bytes, the number of
axes, then the size of each axis as a 32-bit integer) and the values, row by row.
Format: http://yann.lecun.com/exdb/mnist/.
"""

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import read_bytes

PARTS = ("train", "t10k")
_UNSIGNED_BYTE = 8


def read_idx(path: Path, *, n_axes: int) -> Tensor:
    """The array in `path` (gzipped or not) as a uint8 tensor of `n_axes` axes.

    Raises:
        UserError: When the file cannot be read, is not IDX of unsigned bytes, has
            another number of axes, or its size differs from the one in its header.
    """
    content = read_bytes(path)
    length = 4 + 4 * n_axes
    if len(content) < length:
        raise UserError(
            f"{path}: an IDX header of {n_axes} axes has {length} bytes, the file "
            f"holds {len(content)}; download it again"
        )
    magic = int.from_bytes(content[:4], "big")
    expected = _UNSIGNED_BYTE * 256 + n_axes
    if magic != expected:
        raise UserError(
            f"{path}: an IDX file of unsigned bytes with {n_axes} axes starts with the "
            f"number {expected}, but this file starts with {magic}; images have 3 "
            "axes, labels have 1"
        )
    shape = struct.unpack(f">{n_axes}I", content[4:length])
    n_announced, n_held = math.prod(shape), len(content) - length
    if n_announced != n_held:
        sizes = " x ".join(map(str, shape))
        raise UserError(
            f"{path}: the header announces {sizes} = {n_announced} bytes, the file "
            f"holds {n_held}; download it again"
        )
    if n_announced == 0:
        raise UserError(f"{path}: the header announces no items; give another file")
    return torch.frombuffer(bytearray(content[length:]), dtype=torch.uint8).view(shape)


def read_labelled_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (image, row, column) and labels (image) of one part, both uint8.

    Args:
        folder: Holds `{part}-images-idx3-ubyte` and `{part}-labels-idx1-ubyte`, with or
            without `.gz`; a dot may replace the second dash.
        part: "train" or "t10k".

    Raises:
        UserError: When a file is missing or malformed, or the two differ in length.
    """
    images_path = _find(folder, part, "images-idx3-ubyte")
    labels_path = _find(folder, part, "labels-idx1-ubyte")
    images = read_idx(images_path, n_axes=3)
    labels = read_idx(labels_path, n_axes=1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images but {labels_path} holds "
            f"{len(labels)} labels; take both from one release"
        )
    return images, labels


def _find(folder: Path, part: str, ending: str) -> Path:
    name = f"{part}-{ending}"
    dotted = name.replace("-idx", ".idx")
    candidates = [folder / f"{n}{gz}" for n in (name, dotted) for gz in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"{folder} has no file {name} or {name}.gz; an MNIST folder holds images and "
        f"labels of both {' and '.join(PARTS)}"
    )
