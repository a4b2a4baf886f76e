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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.layouts import MlpNames, n_experts_of
from circuitcut.weight_classes.settings import Convention


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
    gain = _gain(checkpoint, layer) if convention == "folded" else None
    for names in _mlps_at(checkpoint, layer):
        weights = _stored(checkpoint, names)
        yield weights if convention == "raw" else _folded(checkpoint, weights, gain)


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


def _stored(checkpoint: Checkpoint, names: MlpNames) -> MlpWeights:
    """One MLP as its tensors have it, brought into the shape (unit, d_model)."""
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
    return MlpWeights(None if gate is None else _real(gate), _real(w_in), _real(w_out))


def _misshapen(
    checkpoint: Checkpoint, names: MlpNames, shapes: list[tuple[int, ...]]
) -> UserError:
    found = " and ".join(map(str, shapes))
    return UserError(
        f"the weights of {checkpoint.name!r} have {names.w_in} and {names.w_out} of "
        f"shapes {found}, which are not those of one MLP; take all files from one "
        "model"
    )


def _real(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where the file has it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _gain(checkpoint: Checkpoint, layer: int) -> Float[Tensor, "d_model"] | None:
    """What the norm before the MLP multiplies with."""
    layout = checkpoint.layout
    if layout.norm is None:
        return None
    return _real(checkpoint.read(layout.norm.format(layer=layer))) + layout.gain_offset


def _folded(
    checkpoint: Checkpoint,
    weights: MlpWeights,
    gain: Float[Tensor, "d_model"] | None,
) -> MlpWeights:
    def read(vectors: Tensor) -> Tensor:
        folded = vectors if gain is None else vectors * gain
        return centred(folded) if checkpoint.layout.centred else folded

    gate = None if weights.gate is None else read(weights.gate)
    is_centred = checkpoint.layout.centred
    w_out = centred(weights.w_out) if is_centred else weights.w_out
    return MlpWeights(gate, read(weights.w_in), w_out)


def centred(vectors: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
    """Every vector without the mean of its entries."""
    return vectors - vectors.mean(1, keepdim=True)
