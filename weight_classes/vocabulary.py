"""What a neuron's vectors say in words: their products with the unembeddings of tokens.

A vector v in d_model gives token t the score v . u_t / |v|, with u_t the token's
unembedding. In the convention `folded`, u_t is multiplied with the gain of the final
norm, and centred over d_model where that is a LayerNorm. The score of w_out is what the
neuron adds to the logit when it writes one unit of length; that of w_gate and w_in is
what makes it read its opposite or its like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcut.storage.errors import UserError
from circuitcut.weight_classes.checkpoint import Checkpoint
from circuitcut.weight_classes.cosines import cosine, norms
from circuitcut.weight_classes.layouts import n_layers_of
from circuitcut.weight_classes.mlp_weights import MlpWeights, centred, mlps_of_layer
from circuitcut.weight_classes.settings import Convention


@dataclass(frozen=True)
class Projection:
    """The tokens nearest to a vector, best first."""

    vector: str
    """`+gate`, `-gate`, `in` or `out`."""
    tokens: tuple[int, ...]
    scores: tuple[float, ...]


def unit_numbers(units: Sequence[str]) -> list[tuple[int, int]]:
    """Layer and neuron of names such as `29.1317`.

    Raises:
        UserError: When a name is none.
    """
    numbers = []
    for name in units:
        layer, _, unit = name.partition(".")
        if not (layer.isdecimal() and unit.isdecimal()):
            raise UserError(
                f"--show must name neurons as LAYER.NUMBER, such as 3.120, got {name!r}"
            )
        numbers.append((int(layer), int(unit)))
    return numbers


def weights_of_unit(
    checkpoint: Checkpoint, layer: int, unit: int, convention: Convention
) -> MlpWeights:
    """The refactored vectors of one neuron; experts are counted one after the other.

    Raises:
        UserError: When the model has no such neuron.
    """
    n_layers, before = n_layers_of(checkpoint.config), 0
    if layer >= n_layers:
        raise UserError(
            f"--show must name a layer from 0 to {n_layers - 1}, got {layer}.{unit}"
        )
    for weights in mlps_of_layer(checkpoint, layer, convention):
        if unit < before + weights.n_units:
            row = slice(unit - before, unit - before + 1)
            gate = None if weights.gate is None else weights.gate[row]
            return MlpWeights(gate, weights.w_in[row], weights.w_out[row]).refactored()
        before += weights.n_units
    raise UserError(
        f"--show must name a neuron from 0 to {before - 1} of layer {layer}, got "
        f"{layer}.{unit}"
    )


def unembedding(
    checkpoint: Checkpoint, convention: Convention
) -> Float[Tensor, "vocab d_model"]:
    """The unembeddings of all tokens.

    Raises:
        UserError: When the family is no language model of the left context.
    """
    layout = checkpoint.layout
    if layout.embedding is None:
        raise UserError(
            f"--show needs a causal language model, got {checkpoint.name!r} of type "
            f"{checkpoint.config['model_type']}"
        )
    vectors = (
        checkpoint.read(layout.embedding)
        if is_tied(checkpoint)
        else checkpoint.read_full(layout.unembedding)
    ).float()
    if convention == "raw":
        return vectors
    if layout.final_norm is not None:
        vectors = vectors * (checkpoint.read(layout.final_norm) + layout.gain_offset)
    return centred(vectors) if layout.centred else vectors


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether tokens have one vector for both embedding and unembedding."""
    return checkpoint.layout.unembedding not in checkpoint.names


def tying(checkpoint: Checkpoint) -> dict[str, object] | None:
    """Cosine of each token's embedding and unembedding; None for encoders.

    `median` and `quartiles` are those of all tokens; 1 where weights are tied.
    """
    layout = checkpoint.layout
    if layout.embedding is None:
        return None
    if is_tied(checkpoint):
        return {"tied": True, "quartiles": [1.0] * 3}
    one = checkpoint.read(layout.embedding).float()
    other = checkpoint.read_full(layout.unembedding).float()
    n = min(len(one), len(other))  # some families pad one of them
    found = cosine(one[:n], other[:n], norms(one[:n]), norms(other[:n]))
    ends = torch.quantile(found, torch.tensor([0.25, 0.5, 0.75]))
    return {"tied": False, "quartiles": ends.tolist()}


def projections(
    weights: MlpWeights, vocabulary: Float[Tensor, "vocab d_model"], n_words: int
) -> list[Projection]:
    """Nearest tokens of + and - w_gate, w_in and w_out of one neuron.

    Args:
        weights: Of one neuron, refactored.
        n_words: Tokens of each vector.
    """
    vectors = {"in": weights.w_in[0], "out": weights.w_out[0]}
    if weights.gate is not None:
        vectors = {"+gate": weights.gate[0], "-gate": -weights.gate[0]} | vectors
    found = []
    for name, vector in vectors.items():
        unit = vector.float() / vector.norm().float().clamp_min(1e-38)
        best = (vocabulary @ unit).topk(min(n_words, len(vocabulary)))
        tokens, scores = tuple(best.indices.tolist()), tuple(best.values.tolist())
        found.append(Projection(name, tokens, scores))
    return found
