"""One edge of the residual graph ablated in each copy of a batch.

Ablating the edge u -> v alone takes h_u - a_u away from what v reads, h_u being what u
writes in the uncut model. The reader v is a query, key or value of a head, an MLP or
the logits; only v and what comes behind it changes, so that the blocks below v need not
run, and hooks in the plain model do the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from circuitcut.attribution.edge_integrated import clean_minus_ablated
from circuitcut.attribution.gate_gradients import concept_margin
from circuitcut.attribution.subject import Subject
from circuitcut.masks.edges.gating import residual_model, stack_of
from circuitcut.masks.edges.sites import graph_at, modules_and_edges
from circuitcut.masks.gating import gated
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.sites import Site
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch


@dataclass
class EdgePatches:
    """Ablates one edge of a site in each copy of a batch, in a decoder."""

    model: ResidualModel
    differences: Float[Tensor, "writer batch seq d_model"]
    """h - a of every writer; 0 where nothing is ablated."""
    stream: Tensor = field(init=False)
    """Input of the block that is patched, (copy * batch, seq, d_model)."""

    @classmethod
    def can_patch(cls, model: nn.Module, edges: Sequence[Site]) -> bool:
        """Whether hooks can ablate an edge alone: else `one_by_one` does.

        Norms on the stream itself (encoders) carry what was written on; merged readers
        of grouped queries read a key that other heads use; one norm for attention and
        MLP (GPT-J) has no input of the MLP's own.
        """
        graph = graph_at(edges)
        is_grouped = not graph.separate_qkv and graph.n_kv_heads != graph.n_heads
        residual = residual_model(model, graph)
        shares_norm = residual.parts.norm_in == residual.parts.norm_mlp is not None
        return not (residual.is_post_norm or is_grouped or shares_norm)

    @classmethod
    def of(cls, subject: Subject, batch: Batch) -> "EdgePatches":
        """With what ablation removes on this batch."""
        _, edges = modules_and_edges(subject.sites)
        stack = stack_of(subject.model, graph_at(edges))
        return cls(stack.model, clean_minus_ablated(subject, stack, batch))

    def runs(self, site: Site) -> list[range]:
        """Numbers of the edges of a site, into attention and into the MLP apart."""
        graph = self.model.graph
        if site.is_logits:
            return [range(site.n_units)]
        n = graph.n_attention_readers * graph.n_before(site.layer)
        return [range(n), range(n, site.n_units)]

    @contextmanager
    def at(self, site: Site, edges: range) -> Iterator[None]:
        """Inside the context copy number i has edge number i of `edges` ablated."""
        graph, layer = self.model.graph, site.layer
        n_before = graph.n_before(layer)
        n_attention = 0 if site.is_logits else graph.n_attention_readers * n_before
        with ExitStack() as hooks:
            if edges.start >= n_attention:
                writers = [edge - n_attention for edge in edges]
                module = (
                    self.model.last_norm()
                    if site.is_logits
                    else self.model.first_of_mlp(layer)
                )
                reads_less = partial(self.on_read, writers)
                hooks.callback(module.register_forward_pre_hook(reads_less).remove)
            else:
                pairs = [divmod(edge, n_before) for edge in edges]
                block = self.model.blocks[layer]
                keep = block.register_forward_pre_hook(self.on_block, with_kwargs=True)
                hooks.callback(keep.remove)
                for number, module in enumerate(self.model.projections(layer)):
                    project = partial(self.on_projection, layer, number, pairs)
                    hooks.callback(module.register_forward_hook(project).remove)
            yield

    def on_read(
        self, writers: Sequence[int], _: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """What the MLP or the logits read, less one writer in each copy."""
        less = self.differences[writers]  # (copy, batch, seq, d_model)
        read = args[0].view(less.shape) - less  # OPT's rows are (copy * batch * seq)
        return (read.view(args[0].shape), *args[1:])

    def on_block(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.stream = args[0] if args else kwargs["hidden_states"]

    def on_projection(
        self,
        layer: int,
        number: int,
        pairs: Sequence[tuple[int, int]],
        module: Any,
        _: Any,
        output: Tensor,
    ) -> Tensor:
        """Outputs with the columns of each copy's reader computed from less.

        Args:
            number: Which projection of the layer this is.
            pairs: Reader and writer of every copy, sorted by reader.
        """
        width, n_copies = self.model.d_head, len(pairs)
        norm = self.model.norm(layer, self.model.parts.norm_in)
        stored = module.weight.T if isinstance(module, Conv1D) else module.weight
        stream = self.stream.unflatten(0, (n_copies, -1))
        result = output.clone().unflatten(0, (n_copies, -1))
        for reader, group in groupby(range(n_copies), key=lambda i: pairs[i][0]):
            copies = list(group)
            places = [p for p in self._places(reader) if p[0] == number]
            if not places:
                continue
            writers = [pairs[i][1] for i in copies]
            read = stream[copies] - self.differences[writers]
            normed = read if norm is None else norm(read)
            for _, first in places:
                columns = slice(first, first + width)
                bias = None if module.bias is None else module.bias[columns]
                result[copies[0] : copies[-1] + 1, ..., columns] = functional.linear(
                    normed, stored[columns], bias
                )
        return result.flatten(0, 1)

    def _places(self, reader: int) -> list[tuple[int, int]]:
        """Projection and first column of all that a reader of the graph reads for."""
        graph = self.model.graph
        parts = [reader]
        if not graph.separate_qkv:
            parts = [part * graph.n_heads + reader for part in range(3)]
        return [self.model.columns(part) for part in parts]


def one_by_one(
    subject: Subject, batch: Batch, edges: Sequence[Site]
) -> Iterator[tuple[Site, slice, Tensor]]:
    """Sum of the margins with each edge ablated: a pass of the edge engine each."""
    ablated = subject.ablated_at(batch)
    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in edges}
    places = [(site, edge) for site in edges for edge in range(site.n_units)]
    for site, edge in shown(places, "exact patching", unit="edge"):
        keep[site.name][edge] = False
        with gated(
            subject.model, edges, keep, ablated, special_ids=subject.special_ids
        ):
            value, _ = concept_margin(subject.task.outputs(subject.model, batch))
        keep[site.name][edge] = True
        yield site, slice(edge, edge + 1), value[None]
