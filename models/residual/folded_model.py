"""A model as a residual graph: its modules, and its attention weights, folded.

Weights come out as one stack per layer, with the gain of the norm before them folded
in, so that a read needs nothing but a matrix product and one scale per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.models.architectures import ARCHITECTURES, architecture_of, d_head
from circuitcut.models.residual.block_modules import (
    PARTS,
    check_modules,
    graph_of,
    last_norm_of,
    parts_of,
)
from circuitcut.models.residual.graph import AttentionBias, Position, ValueBias


@dataclass(frozen=True)
class FoldedLayer:
    """Weights of one block's attention, as the residual graph uses them.

    p = s read A + b and h[n] = o[n] O[n] + k[n] (docs/edge_engine.md, section 3); of
    the output bias, k0 = b_O - sum_n k[n] is always on.
    """

    read: Float[Tensor, "reader d_model width"]
    """A of every reader, times the gain of the norm before; centred where the model's
    norms centre. Width is d_head, or three times that where queries, keys and values
    are merged. In memory d_model is last, which the backward pass multiplies faster by
    (LOG.md)."""
    read_bias: Float[Tensor, "reader 1 width"]
    """b, with the bias of the norm before."""
    write: Float[Tensor, "head d_head d_model"]
    """O of every head; centred where the model's norms centre."""
    write_bias: Float[Tensor, "d_model"] | None
    """b_O, centred likewise; for the stream itself."""
    head_bias: Float[Tensor, "head d_model"] | None
    """k[n], the constant that each head writes, centred likewise."""
    always_bias: Float[Tensor, "d_model"] | None
    """k0, the constant that is always on, centred likewise."""

    def detached(self) -> "FoldedLayer":
        """The same numbers without a graph."""
        detached: dict[str, Any] = {
            part.name: None if tensor is None else tensor.detach()
            for part in fields(FoldedLayer)
            for tensor in [getattr(self, part.name)]
        }
        return replace(self, **detached)


def _trained(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


class ResidualModel:
    """A model seen as a residual graph: its modules, and its weights folded.

    Raises:
        UserError: When the architecture is not in the table, a module of it is missing,
            or a switch asks for what the architecture does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        separate_qkv: bool = True,
        attention_bias: AttentionBias = "always",
        position: Position = "merged",
        value_bias: ValueBias = "heads",
    ):
        self.parts = parts_of(model)
        self.graph = graph_of(
            model,
            separate_qkv=separate_qkv,
            attention_bias=attention_bias,
            position=position,
            value_bias=value_bias,
        )
        config: Any = model.config
        self.model = model
        self.base: Any = getattr(model, "base_model", model)
        block = architecture_of(model).block
        paths = [block.format(layer) for layer in range(self.graph.n_layers)]
        self.blocks: list[Any] = [self.base.get_submodule(path) for path in paths]
        self._modules: dict[tuple[int, str], Any] = {}
        check_modules(self.blocks, self.parts, config.model_type)
        self.d_model, self.d_head = config.hidden_size, d_head(config)
        last_norm = self.base.get_submodule(last_norm_of(model, paths[-1]))
        self.is_post_norm = self.parts.norms_on_stream is not None
        """Norms sit on the stream itself, and none before a read."""
        self.centred = not self.is_post_norm and (
            isinstance(last_norm, nn.LayerNorm) or self.parts.fixed_norms is not None
        )
        """Norms subtract the mean, so that all writers may be stored without it."""

    def attention(self, layer: int) -> Any:
        """The attention module of a block."""
        return self._module(layer, self.parts.attention)

    def projections(self, layer: int) -> list[Any]:
        """Its query, key and value projections; one where they are one module."""
        path = self.parts.attention
        return [self._module(layer, f"{path}.{n}") for n in self.parts.projections]

    def output(self, layer: int) -> Any:
        """Its output projection."""
        return self._module(layer, self.parts.output)

    def norm(self, layer: int, name: str | None) -> Any:
        """A norm of a block, by the name in the table."""
        return None if name is None else self._module(layer, name)

    def _module(self, layer: int, path: str) -> Any:
        """A module below a block; looked up once, for every pass uses some."""
        key = layer, path
        if key not in self._modules:
            self._modules[key] = self.blocks[layer].get_submodule(path)
        return self._modules[key]

    def gain(self, norm: Any) -> Float[Tensor, "d_model"]:
        """What a norm multiplies by."""
        if self.parts.fixed_norms is not None:
            return next(self.base.parameters()).new_ones(self.d_model)
        return norm.weight + self.parts.gain_offset

    def run_mlp(self, layer: int, stream: Float[Tensor, "batch seq d_model"]) -> Tensor:
        """What the MLP writes, of the stream it reads."""
        parts = self.parts
        before = self.norm(layer, parts.norm_mlp)
        written = stream if before is None else before(stream)
        for name in parts.mlp:
            written = self._module(layer, name)(written)
        after = self.norm(layer, parts.norm_written)
        return written if after is None else after(written)

    def eps(self, norm: Any) -> float:
        """What a norm adds to the mean square."""
        if self.parts.fixed_norms is not None:
            return self.parts.fixed_norms
        return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def inverse_deviation(
        self, norm: Any, values: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, "*token 1"]:
        """(|values|^2 / d + eps)^(-1/2): the scale of a norm, without its gain."""
        square = values.square().mean(-1, keepdim=True)
        return (square + self.eps(norm)).rsqrt()

    def fold(self, layer: int) -> FoldedLayer:
        """The layer's attention weights, a copy: to be folded anew after a change."""
        graph, norm = self.graph, self.norm(layer, self.parts.norm_in)
        # W, (reader, d_model, d_head), and b_W, (reader, d_head)
        weight, bias = self._projection(layer)
        if norm is not None:
            # norm(read) W + b_W = s (C read) (gain W) + (bias W + b_W)
            if getattr(norm, "bias", None) is not None:
                bias = bias + torch.einsum("d,rdh->rh", norm.bias, weight)
            weight = weight * self.gain(norm)[:, None]
            if self.centred:  # A = C (gain W): C read = read, only dL/dread changes
                weight = weight - weight.mean(1, keepdim=True)
        if not graph.separate_qkv:
            weight, bias = self._merged(weight), self._merged(bias)
        constants = (self.output(layer).bias, *self.written_constants(layer))
        b_o, of_heads, always = (
            None if c is None else self._centred(c) for c in constants
        )
        return FoldedLayer(
            weight.mT.contiguous().mT, bias[:, None].contiguous(),
            self._centred(self.write(layer)).contiguous(),
            b_o, of_heads, always,
        )  # fmt: skip

    def _centred(self, written: Tensor) -> Tensor:
        """What is written, without its mean where the model's norms remove it."""
        return written - written.mean(-1, keepdim=True) if self.centred else written

    def written_constants(
        self, layer: int
    ) -> tuple[Float[Tensor, "head d_model"] | None, Float[Tensor, "d_model"] | None]:
        """k[n] of every head and k0, which is always on, not centred; None is zero.

        Attention's weights sum to 1, so a value bias b_V adds the constant
        c[n] = b_V[n] W_O[n] to o[n] O[n]. In the output bias it is b = b_O + sum_n c[n]
        of all heads, and k[n] takes c[n] away; else b = b_O. Of b, k[n] has an equal
        part, or it is always on.
        """
        graph, bias = self.graph, self.output(layer).bias
        moved = self._value_constants(layer)
        if moved is not None:
            bias = moved.sum(0) if bias is None else bias + moved.sum(0)
        if graph.attention_bias == "always" or bias is None:
            return (None if moved is None else -moved), bias
        shares = (bias / graph.n_heads).expand(graph.n_heads, -1)
        return (shares if moved is None else shares - moved), None

    def _value_constants(self, layer: int) -> Float[Tensor, "head d_model"] | None:
        """c[n] of the value bias that joins the output bias; None where none does."""
        if self.graph.value_bias == "heads":
            return None
        n_groups, norm = self.graph.n_kv_heads, self.norm(layer, self.parts.norm_in)
        weight, bias = (part[-n_groups:] for part in self._projection(layer))
        norm_bias = getattr(norm, "bias", None)
        if self.graph.value_bias == "output_with_norm" and norm_bias is not None:
            bias = bias + torch.einsum("d,gdh->gh", norm_bias, weight)
        by_head = bias.repeat_interleave(self.graph.n_heads // n_groups, 0)
        return torch.einsum("nh,nhd->nd", by_head, self.write(layer))

    def write(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """The output projection as stored, head by head: h[n] = o[n] O[n]."""
        output = self.output(layer)
        stored = output.weight if isinstance(output, Conv1D) else output.weight.T
        return stored.view(self.graph.n_heads, self.d_head, self.d_model)

    def last_of_mlp(self, layer: int) -> Any:
        """The module whose output is what the MLP writes."""
        return self.norm(layer, self.parts.norm_written or self.parts.mlp[-1])

    def mlp_parameters(self, layer: int) -> list[nn.Parameter]:
        """What `run_mlp` computes with, where it is trained."""
        return [weight for weight in self.mlp_weights(layer) if weight.requires_grad]

    def mlp_weights(self, layer: int) -> list[nn.Parameter]:
        """All weights that `run_mlp` computes with."""
        names = [self.parts.norm_mlp, *self.parts.mlp, self.parts.norm_written]
        modules = [self.norm(layer, name) for name in names if name is not None]
        return [weight for module in modules for weight in module.parameters()]

    def attention_parameters(self, layer: int) -> list[nn.Parameter]:
        """What attention computes with besides its projections, where it is trained."""
        folded = {
            id(parameter)
            for module in (*self.projections(layer), self.output(layer))
            for parameter in module.parameters()
        }
        trained = _trained([self.attention(layer)])
        return [parameter for parameter in trained if id(parameter) not in folded]

    def versions(self) -> tuple[tuple[int, int], ...]:
        """Changes when a weight of a block does: where each lies, and how often it did.

        A change through `.data` is not counted.
        """
        return tuple(
            (parameter.data_ptr(), parameter._version)
            for block in self.blocks
            for parameter in block.parameters()
        )

    @property
    def is_trained(self) -> bool:
        """Some weight of a block takes a gradient."""
        return any(p.requires_grad for block in self.blocks for p in block.parameters())

    def _projection(self, layer: int) -> tuple[Tensor, Tensor]:
        """Weights and biases of all queries, all keys, all values, separately."""
        modules = self.projections(layer)
        weights, biases = [], []
        for module in modules:
            stored = module.weight.T if isinstance(module, Conv1D) else module.weight
            bias = getattr(module, "bias", None)
            weights.append(stored)
            biases.append(stored.new_zeros(len(stored)) if bias is None else bias)
        weight = torch.cat(weights).view(-1, self.d_head, self.d_model)
        bias = torch.cat(biases).view(-1, self.d_head)
        if self.parts.fused == "by head":
            order = torch.arange(len(weight)).view(-1, 3).T.reshape(-1)
            weight, bias = weight[order], bias[order]
        return weight.transpose(1, 2), bias

    def _merged(self, parts: Tensor) -> Tensor:
        """(query + key + value readers, ..., d_head) to (heads, ..., 3 * d_head)."""
        n_heads, n_groups = self.graph.n_heads, self.graph.n_kv_heads
        query, key, value = parts.split([n_heads, n_groups, n_groups])
        key, value = (
            part.repeat_interleave(n_heads // n_groups, 0) for part in (key, value)
        )
        return torch.cat([query, key, value], -1)


assert PARTS.keys() <= ARCHITECTURES.keys()
