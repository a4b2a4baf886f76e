"""Batches drawn epoch by epoch as a pure function of the step, without any state."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch

from circuitcut.storage.errors import UserError


def shuffled(n: int, *key: str | int) -> list[int]:
    """The numbers 0..n-1 in an order that depends on `key` only, on every machine."""
    return list(_shuffled(n, key))


def draw(n: int, step: int, size: int, *key: str | int) -> list[int]:
    """Batch number `step`: `size` indices below `n`.

    Batches are consecutive pieces of an endless sequence of shuffled epochs: every
    index is drawn once before any is drawn a second time. If `n` <= `size`, the batch
    is all `n` indices, so that no example is twice in a batch.
    """
    if n <= size:
        return list(_shuffled(n, (*key, step)))
    drawn: list[int] = []
    start = step * size
    while len(drawn) < size:
        epoch, offset = divmod(start + len(drawn), n)
        drawn += _shuffled(n, (*key, epoch))[offset : offset + size - len(drawn)]
    return drawn


def digest_of(records: Mapping[str, Sequence[object]], *further: str) -> str:
    """SHA-256 hex digest of the records of every split, in order, and of more text."""
    digest = hashlib.sha256()
    for split, rows in records.items():
        digest.update(repr((split, rows)).encode())
    for text in further:
        digest.update(text.encode())
    return digest.hexdigest()


def draw_from(
    pool: Sequence[int], step: int, size: int, kind: str, split: str, seed: int
) -> list[int]:
    """Batch number `step`: `size` members of `pool`, see `draw`.

    Args:
        kind: Kind of example, in words; `kind`, `split` and `seed` fix the order.

    Raises:
        UserError: When the pool is empty.
    """
    if not pool:
        raise UserError(f"split {split!r} has no examples {kind}; give more data")
    return [pool[i] for i in draw(len(pool), step, size, kind, split, seed)]


@lru_cache(maxsize=16)
def _shuffled(n: int, key: tuple[str | int, ...]) -> tuple[int, ...]:
    digest = hashlib.sha256(repr(key).encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return tuple(torch.randperm(n, generator=rng).tolist())
