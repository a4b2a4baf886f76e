"""The vectors of a layer's neurons in one shape, whatever the family.

A gated neuron adds act(w_gate . x) (w_in . x) w_out to the residual stream, a plain one
act(w_in . x) w_out. All vectors have d_model entries.

`raw` takes them as stored. `folded` takes the product of the reading vectors with the
gain of the norm before the MLP (Gemma: 1 + gain); where that is a LayerNorm, which
subtracts the mean, reading vectors and w_out are also centred over d_model. The
published counts of Gerstner & Schuetze (2025), "Understanding Gated Neurons in
Transformers from Their Input-Output Functionality", https://arxiv.org/abs/2505.17936,
are on such folded weights. A gain behind the MLP (Gemma 2, OLMo 2) is not folded.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.layouts import MlpNames, n_experts_of
from circuitcut.weight_classes.settings import Convention

BLOCK = 2**20
"""Most numbers of a matrix in a block: 4 MB."""


@dataclass(frozen=True)
class MlpWeights:
    """The vectors of one MLP, or of one expert."""

    gate: Float[Tensor, "unit d_model"] | None
    """None: a plain MLP."""
    w_in: Float[Tensor, "unit d_model"]
    w_out: Float[Tensor, "unit d_model"]

    @property
    def n_units(self) -> int:
        """Number of neurons."""
        return len(self.w_in)

    def refactored(self) -> "MlpWeights":
        """w_in and w_out multiplied by the sign of w_gate . w_in, which is then >= 0.

        The function of the MLP stays the same; a plain one stays as it is.
        """
        if self.gate is None:
            return self
        sign = signs(self.gate, self.w_in).unsqueeze(1)
        return MlpWeights(self.gate, self.w_in * sign, self.w_out * sign)


def signs(
    gate: Float[Tensor, "unit d_model"], w_in: Float[Tensor, "unit d_model"]
) -> Float[Tensor, "unit"]:
    """1 or -1 for each neuron: the sign of w_gate . w_in, 1 where it is 0."""
    dot = torch.linalg.vecdot(gate, w_in)
    return torch.where(dot < 0, -1.0, 1.0).to(gate.dtype)


def mlps_of_layer(
    checkpoint: Checkpoint, layer: int, convention: Convention = "folded"
) -> Iterator[MlpWeights]:
    """The MLPs of a layer: one, or its experts one after the other.

    At any time one of them is in memory, in float32 (of float64 files in float64).

    Args:
        layer: Number of the block, from 0.

    Raises:
        UserError: When tensors are missing or their shapes do not fit.
    """
    for stored in _stored_of_layer(checkpoint, layer, convention):
        yield stored.block(0, stored.n_units, {})


def mlp_blocks_of_layer(
    checkpoint: Checkpoint, layer: int, convention: Convention = "folded"
) -> Iterator[tuple[int, Iterator[MlpWeights]]]:
    """`mlps_of_layer` with some neurons of an MLP at a time, which fit in the cache.

    A block is valid until the next one is asked for: they share their memory. An MLP of
    up to `BLOCK` numbers a matrix is one block, and no block of a larger one has fewer
    than two neurons.

    Args:
        layer: Number of the block, from 0.

    Yields:
        Number of neurons and blocks of an MLP, or of an expert.

    Raises:
        UserError: When tensors are missing or their shapes do not fit.
    """
    for stored in _stored_of_layer(checkpoint, layer, convention):
        yield stored.n_units, stored.blocks()


def n_units_at(checkpoint: Checkpoint, layer: int) -> int:
    """Number of neurons of a layer's MLPs together, from the files' headers alone.

    Args:
        layer: Number of the block, from 0.

    Raises:
        UserError: When tensors are missing or are no matrices.
    """
    return sum(_n_units(checkpoint, names) for names in _mlps_at(checkpoint, layer))


def _n_units(checkpoint: Checkpoint, names: MlpNames) -> int:
    # w_out has one column a neuron, and unlike w_in no rows of the gate
    shape = checkpoint.shape(names.w_out)
    if len(shape) != 2:
        raise _misshapen(checkpoint, names, [checkpoint.shape(names.w_in), shape])
    return shape[0] if names.transposed else shape[1]


def _mlps_at(checkpoint: Checkpoint, layer: int) -> Iterator[MlpNames]:
    """Names of the tensors of every MLP of a layer, numbers filled in."""
    layout, n_found = checkpoint.layout, 0
    for names in layout.mlps:
        has_experts = "{expert}" in names.w_in
        if not checkpoint.has(names.w_in.format(layer=layer, expert=0)):
            continue
        for expert in range(n_experts_of(checkpoint.config) if has_experts else 1):
            n_found += 1
            yield MlpNames(
                names.w_in.format(layer=layer, expert=expert),
                names.w_out.format(layer=layer, expert=expert),
                names.gate and names.gate.format(layer=layer, expert=expert),
                fused=names.fused,
                transposed=names.transposed,
            )
    if not n_found:
        raise checkpoint.lacks(layout.mlps[0].w_in.format(layer=layer, expert=0))


@dataclass(frozen=True)
class _Stored:
    """One MLP as its files have it, but for its shape, and how it is folded."""

    gate: Tensor | None
    w_in: Tensor
    w_out: Tensor
    gain: Float[Tensor, "d_model"] | None
    """Of the norm before the MLP; None: nothing to multiply with."""
    is_centred: bool

    @property
    def n_units(self) -> int:
        return len(self.w_in)

    def blocks(self) -> Iterator[MlpWeights]:
        """All neurons, some at a time, in the same memory."""
        n, d_model = self.w_in.shape
        n_blocks = max(1, min(math.ceil(n * d_model / BLOCK), n // 2))
        ends = [n * i // n_blocks for i in range(n_blocks + 1)]
        memory: dict[str, Tensor] = {}
        for start, end in itertools.pairwise(ends):
            yield self.block(start, end, memory)

    def block(self, start: int, end: int, memory: dict[str, Tensor]) -> MlpWeights:
        """Some neurons, folded and centred, in float32 or float64.

        Args:
            memory: Where the vectors of earlier blocks lie, which these ones overwrite.
        """

        def real(name: str, stored: Tensor, gain: Tensor | None) -> Tensor:
            vectors = _copied(stored[start:end], name, memory)
            if gain is not None:
                vectors.mul_(gain)
            if self.is_centred:
                vectors.sub_(vectors.mean(1, keepdim=True))
            return vectors

        return MlpWeights(
            None if self.gate is None else real("gate", self.gate, self.gain),
            real("w_in", self.w_in, self.gain),
            real("w_out", self.w_out, None),
        )


def _copied(stored: Tensor, name: str, memory: dict[str, Tensor]) -> Tensor:
    """Rows in float32, or in float64 where the file has it, in memory of their own.

    A transposed matrix is first converted as it lies and then transposed: torch is five
    times slower at both together.
    """
    dtype = torch.promote_types(stored.dtype, torch.float32)

    def buffer(key: str, shape: torch.Size) -> Tensor:
        known = memory.get(key)
        if known is None or known.numel() < shape.numel():
            known = memory[key] = torch.empty(
                shape.numel(), dtype=dtype, device=stored.device
            )
        return known[: shape.numel()].view(shape)

    if stored.stride(0) < stored.stride(1):
        as_it_lies = buffer(f"{name} as it lies", stored.T.shape)
        stored = as_it_lies.copy_(stored.T).T
    return buffer(name, stored.shape).copy_(stored)


def _stored_of_layer(
    checkpoint: Checkpoint, layer: int, convention: Convention
) -> Iterator[_Stored]:
    """The MLPs of a layer, one at a time."""
    is_folded = convention == "folded"
    gain = _gain(checkpoint, layer) if is_folded else None
    is_centred = is_folded and checkpoint.layout.centred
    for names in _mlps_at(checkpoint, layer):
        yield _Stored(*_tensors(checkpoint, names), gain, is_centred)


def _tensors(
    checkpoint: Checkpoint, names: MlpNames
) -> tuple[Tensor | None, Tensor, Tensor]:
    """w_gate, w_in and w_out of one MLP in the shape (unit, d_model)."""
    w_in, w_out = checkpoint.read(names.w_in), checkpoint.read(names.w_out)
    gate = checkpoint.read(names.gate) if names.gate else None
    tensors = [t for t in (w_in, w_out, gate) if t is not None]
    if any(t.dim() != 2 for t in tensors):
        raise _misshapen(checkpoint, names, [tuple(t.shape) for t in tensors])
    if names.transposed:
        w_in = w_in.T
    else:
        w_out = w_out.T
    if names.fused:
        gate, w_in = w_in.chunk(2)  # (2 unit, d_model)
    shapes = {t.shape for t in (gate, w_in, w_out) if t is not None}
    if len(shapes) > 1:
        raise _misshapen(checkpoint, names, [tuple(t.shape) for t in tensors])
    return gate, w_in, w_out


def _misshapen(
    checkpoint: Checkpoint, names: MlpNames, shapes: list[tuple[int, ...]]
) -> UserError:
    found = " and ".join(map(str, shapes))
    return UserError(
        f"the weights of {checkpoint.name!r} have {names.w_in} and {names.w_out} of "
        f"shapes {found}, which are not those of one MLP; take all files from one "
        "model"
    )


def _gain(checkpoint: Checkpoint, layer: int) -> Float[Tensor, "d_model"] | None:
    """What the norm before the MLP multiplies with."""
    layout = checkpoint.layout
    if layout.norm is None:
        return None
    gain = checkpoint.read(layout.norm.format(layer=layer))
    return gain.to(torch.promote_types(gain.dtype, torch.float32)) + layout.gain_offset


def centred(vectors: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
    """Every vector without the mean of its entries."""
    return vectors - vectors.mean(1, keepdim=True)
