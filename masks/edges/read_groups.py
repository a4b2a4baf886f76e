"""Reads of several layers in one product with the rows that all of them read.

The reads of one layer are a product of a few gates with long rows, which takes as long
as fetching the rows from memory. Layers are therefore taken in groups a, ..., b - 1:

    read[r] = sum over w < W_a of g[r, w] x[w]            all layers l of the group
            + x0 + sum over W_a <= w < W_l of g[r, w] x[w]          when l is reached

The first sum is one product for all readers of the group, and so are, once the backward
pass has left layer a, its gradients to gates and to rows. A group has as many layers as
keep the product busy; with dozens of readers in one layer it is a single layer.
Symbols: docs/edge_engine.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitcut.masks.edges.products import mix
from circuitcut.masks.edges.reads import tiles
from circuitcut.masks.edges.run import EdgeRun

READERS = 74
"""Readers of a group at most, if it has more than one layer: measured (LOG.md)."""


def layers_of_group(layer: int, n_layers: int, n_readers: int) -> range:
    """The layers that are read together with `layer`.

    Args:
        layer: Number of the block.
        n_layers: Blocks.
        n_readers: Readers of one layer.
    """
    n_together = max(1, READERS // max(1, n_readers))
    first = layer - layer % n_together
    return range(first, min(first + n_together, n_layers))


@dataclass
class ReadGroup:
    """Reads of a group of layers for one tile of tokens.

    Attributes:
        tokens: The tile.
        gates: [1, g[r, w]] of every layer: (reader, x0 and writer before the layer).
        reads: read[r, t] of all layers, (reader, tile, width), borrowed; in the
            backward pass they become their gradients in place.
        squares: |read[r, t]|^2, (reader, tile); None: not computed.
    """

    tokens: slice
    gates: Sequence[Tensor]
    reads: Tensor
    squares: Tensor | None = None

    @classmethod
    def begin(
        cls,
        run: EdgeRun,
        rows: Tensor,
        gates: Sequence[Tensor],
        tokens: slice,
        *,
        with_squares: bool = False,
    ) -> "ReadGroup":
        """Add up what was written before the group; complete for its first layer.

        Args:
            run: Of which buffers are borrowed.
            rows: x0 as the first layer reads it and x[w], (1 + writer, token, width).
            gates: Of every layer; those before it are the first writers of `rows`.
            tokens: The tile.
            with_squares: Compute |read|^2.
        """
        group = cls.empty(run, rows, gates, tokens)
        before = group.gates_before
        if len(gates) > 1:
            before[len(gates[0]) :, 0] = 0  # later layers add x0 as they read it
        if with_squares:
            wide = torch.promote_types(rows.dtype, torch.float32)
            group.squares = rows.new_empty(group.reads.shape[:2], dtype=wide)
        mix(group.reads, before, rows[: before.shape[1], tokens], group.squares)
        return group

    @classmethod
    def empty(
        cls, run: EdgeRun, rows: Tensor, gates: Sequence[Tensor], tokens: slice
    ) -> "ReadGroup":
        """A buffer for the reads, not filled in."""
        n_readers = sum(len(of_layer) for of_layer in gates)
        return cls(tokens, gates, run.tile(rows, n_readers, tokens))

    def complete(self, place: int, rows: Tensor, always: Tensor) -> None:
        """Add x0 and what the group has written to the reads of one of its layers.

        Args:
            place: Of the layer in the group; its first layer, 0, is complete.
            rows: x0 and x[w], (1 + writer, token, width).
            always: x0 as the layer reads it, (token, width).
        """
        if place == 0:
            return
        new_gates = self.gates[place][:, self.n_rows :]
        new_rows = rows[self.n_rows :][: new_gates.shape[1], self.tokens]
        squares = None if self.squares is None else self.squares_of(place)
        mix(self.of(place), new_gates, new_rows, squares, always=always[self.tokens])

    @property
    def n_rows(self) -> int:
        """Rows that all layers of the group read: x0 and the writers before it."""
        return self.gates[0].shape[1]

    @property
    def gates_before(self) -> Tensor:
        """Gates of these rows: (reader of the group, x0 and writer before it)."""
        return torch.cat([of_layer[:, : self.n_rows] for of_layer in self.gates])

    def of(self, place: int) -> Tensor:
        """Reads of one of the layers: (reader, tile, width)."""
        return self.reads[self._readers(place)]

    def squares_of(self, place: int) -> Tensor:
        """|read|^2 of one of the layers: (reader, tile)."""
        assert self.squares is not None
        return self.squares[self._readers(place)]

    def _readers(self, place: int) -> slice:
        start = sum(len(of_layer) for of_layer in self.gates[:place])
        return slice(start, start + len(self.gates[place]))


class GroupedReads:
    """The reads of layer after layer in a forward pass.

    Args:
        run: Of which buffers are borrowed.
        rows: x0 and x[w], which the pass fills in: (1 + writer, token, width).
        n_layers: Blocks.
        n_readers: Readers of a layer, at most.
        gates_of: [1, g[r, w]] of a layer, (reader, x0 and writer before the layer).
        keep: Keep the buffers for the backward pass.
    """

    def __init__(
        self,
        run: EdgeRun,
        rows: Tensor,
        n_layers: int,
        n_readers: int,
        gates_of: Callable[[int], Tensor],
        *,
        keep: bool = False,
    ):
        self.run, self.rows, self.gates_of, self.keep = run, rows, gates_of, keep
        self.n_layers, self.n_readers = n_layers, n_readers
        self.layers = range(0)
        self.gates: list[Tensor] = []
        self.groups: list[ReadGroup] = []

    def of(self, layer: int, always: Tensor) -> Iterator[tuple[ReadGroup, int]]:
        """A layer's reads, tile by tile: the group of a tile, the layer's place in it.

        To be called for one layer after the other, each time up to the last tile;
        layers without a reader may be left out. A tile's reads are lost after the last
        layer of its group, unless they are kept.

        Args:
            layer: Number of the block.
            always: x0 as the layer reads it, (token, width).
        """
        if layer not in self.layers:
            self.release()
            self.layers = layers_of_group(layer, self.n_layers, self.n_readers)
            self.gates = [self.gates_of(number) for number in self.layers]
        n_reads = sum(len(of_layer) for of_layer in self.gates)
        place = layer - self.layers.start
        is_last = layer + 1 == self.layers.stop
        for number, tokens in enumerate(tiles(self.rows[0], n_reads)):
            if number == len(self.groups):
                self.groups.append(
                    ReadGroup.begin(
                        self.run, self.rows, self.gates, tokens, with_squares=True
                    )
                )
            group = self.groups[number]
            group.complete(place, self.rows, always)
            yield group, place
            if is_last and not self.keep:
                self.run.buffers.give_back(group.reads)
        if is_last:
            self.groups = []

    def release(self) -> None:
        """Give back what a group's last layers did not ask for, at the end too."""
        if not self.keep:
            self.run.buffers.give_back(*(group.reads for group in self.groups))
        self.groups = []
