"""The residual stream as a graph: who writes into it, who reads it, and every edge.

Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits": the stream is
the sum of what the embedding, the heads and the MLPs write, and each of them reads that
sum. An edge is one writer's share of what one reader reads. Names are those of the MIB
and EAP-IG graph files: `input`, `a{layer}.h{head}`, `m{layer}`, `logits`;
`a0.h1->m3`, `input->a0.h0<q>`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

AttentionBias = Literal["always", "heads"]
Position = Literal["merged", "own", "always"]
ValueBias = Literal["heads", "output", "output_with_norm"]


@dataclass(frozen=True)
class ResidualGraph:
    """Writers, readers and edges of one model.

    Edges lie in one flat vector, reader by reader, and within a reader by writer, so
    that the edges of one layer are a contiguous block. Readers of a layer: all queries,
    all keys, all values (one each where they are merged), then the MLP; the logits
    last. Writers: `input` (and `position` where it is a node of its own), then of each
    layer the heads and the MLP.

    Args:
        n_layers: Blocks.
        n_heads: Query heads of a block.
        n_kv_heads: Key-value heads of a block; each is a reader of its own for keys and
            for values where they are separate.
        separate_qkv: Queries, keys and values read through edges of their own;
            otherwise a head has one reader for all three, which with grouped queries
            reads its group's key and value too, for this head alone.
        parallel: Attention and MLP of a block read the same stream (GPT-NeoX).
        attention_bias: The bias of attention's output projection is `always` on, or
            an equal part of it belongs to each of the `heads`.
        position: The position embedding is `merged` into `input`, a writer of its
            `own`, or `always` on.
        value_bias: The constant that a head's value bias b_V adds to what the head
            writes, b_V W_O, is written by each of the `heads`, or is part of the
            `output` bias of all heads, which `attention_bias` is about; with
            `output_with_norm` so is what the bias of the norm before adds to b_V.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    separate_qkv: bool = True
    parallel: bool = False
    attention_bias: AttentionBias = "always"
    position: Position = "merged"
    value_bias: ValueBias = "heads"

    @property
    def n_inputs(self) -> int:
        """Writers before the first block: 1, or 2 with a node for positions."""
        return 2 if self.position == "own" else 1

    @property
    def n_attention_readers(self) -> int:
        """Readers of one layer's attention."""
        return self.n_heads + 2 * self.n_kv_heads if self.separate_qkv else self.n_heads

    @property
    def n_writers(self) -> int:
        """All writers."""
        return self.n_before(self.n_layers)

    def n_before(self, layer: int) -> int:
        """Writers that the attention of `layer` can read."""
        return self.n_inputs + layer * (self.n_heads + 1)

    def n_seen_by_mlp(self, layer: int) -> int:
        """Writers that the MLP of `layer` can read."""
        n_new = 0 if self.parallel else self.n_heads
        return self.n_before(layer) + n_new

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where in the flat vector each layer's edges begin; last those of `logits`."""
        sizes = [
            self.n_attention_readers * self.n_before(layer) + self.n_seen_by_mlp(layer)
            for layer in range(self.n_layers)
        ]
        return tuple(accumulate(sizes, initial=0))

    @property
    def n_edges(self) -> int:
        """All edges; 32,491 for GPT-2 small, 11,611 where q, k, v are merged."""
        return self.offsets[-1] + self.n_writers

    def n_seen_at(self, layer: int) -> int:
        """Writers that any reader of `layer` can read; `n_layers` is the logits."""
        is_logits = layer == self.n_layers
        return self.n_writers if is_logits else self.n_seen_by_mlp(layer)

    def n_edges_at(self, layer: int) -> int:
        """Edges that the readers of `layer` read; `n_layers` is the logits."""
        start, stop = (*self.offsets, self.n_edges)[layer : layer + 2]
        return stop - start

    def writers(self) -> list[str]:
        """Names of the writers in their order."""
        names = ["input", "position"][: self.n_inputs]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return names

    def edges(self) -> Iterator[str]:
        """Names of all edges in the order of the flat vector."""
        writers = self.writers()
        for layer in range(self.n_layers):
            before = writers[: self.n_before(layer)]
            for reader in self._attention_readers(layer):
                yield from (edge_name(writer, reader) for writer in before)
            before_mlp = writers[: self.n_seen_by_mlp(layer)]
            yield from (edge_name(writer, f"m{layer}") for writer in before_mlp)
        yield from (edge_name(writer, "logits") for writer in writers)

    def _attention_readers(self, layer: int) -> list[str]:
        heads = [f"a{layer}.h{head}" for head in range(self.n_heads)]
        if not self.separate_qkv:
            return heads
        groups = [f"a{layer}.h{head}" for head in range(self.n_kv_heads)]
        return (
            [f"{name}<q>" for name in heads]
            + [f"{name}<k>" for name in groups]
            + [f"{name}<v>" for name in groups]
        )

    def difference_from(self, other: "ResidualGraph") -> str | None:
        """The difference between two graphs, in words; None where they are equal."""
        names = {
            "n_layers": "layers",
            "n_heads": "heads",
            "n_kv_heads": "key-value heads",
            "separate_qkv": "separate queries, keys and values",
            "parallel": "parallel attention and MLP",
            "attention_bias": "attention bias",
            "position": "position embedding",
            "value_bias": "value bias",
        }
        differences = [
            f"{label} {getattr(self, name)} against {getattr(other, name)}"
            for name, label in names.items()
            if getattr(self, name) != getattr(other, name)
        ]
        return "; ".join(differences) or None


def edge_name(writer: str, reader: str) -> str:
    """Name of an edge: `a0.h1->m3`."""
    return f"{writer}->{reader}"
