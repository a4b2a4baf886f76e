"""Transformers built by hand, whose true edges are known.

The models are unmodified `transformers` models. The residual stream is divided into
named spaces. The planted circuit reads and writes its own dimensions, in which a token
or a position is a one-hot code. All other heads and MLPs are random. They read all
dimensions and write into the remaining ones, which the planted circuit does not read:
they affect the circuit through the norms only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
)

CODE = 2.0
"""Length of a one-hot code in an embedding."""
NOISE = 0.2
"""Standard deviation of the random weights."""
WRITTEN = 0.25
"""Standard deviation of the output of one random head or MLP, for about 12 of them."""
SHARPNESS = 5.0
"""Scale of planted queries and keys."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    n_layers: int = 2
    n_heads: int = 4
    d_head: int = 16
    n_groups: int | None = None
    """Number of key-value heads; None means `n_heads`."""
    seq: int = 8
    written: float = WRITTEN
    """Approximate standard deviation, per dimension, of the output of one random head
    or MLP; with many of them it must be small."""


@dataclass(frozen=True)
class Head:
    """Views of one attention head's weights, (d_head, d_model), in any family."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    """Output weights, also (d_head, d_model)."""


class Workbench:
    """A random model with named spaces in its residual stream, to plant a circuit in.

    Args:
        family: `gpt2`, `gpt_neox`, `llama` or `bert`.
        n_tokens: Size of the vocabulary; also the number of classes of an encoder.
        spaces: Number of dimensions of each space by name, in order; the rest is noise.
        seed: Seed of all random weights.
        sizes: Sizes of the model.
    """

    def __init__(
        self,
        family: str,
        *,
        n_tokens: int,
        spaces: Mapping[str, int],
        seed: int,
        sizes: Sizes = Sizes(),
    ):
        n_heads, n_groups = sizes.n_heads, sizes.n_groups or sizes.n_heads
        self.family, self.n_heads, self.d_head = family, n_heads, sizes.d_head
        self.n_layers, self.written = sizes.n_layers, sizes.written
        self.d_model = n_heads * sizes.d_head
        self.rng = torch.Generator().manual_seed(seed)
        self.model: Any = _untrained(
            family,
            hidden_size=self.d_model,
            num_attention_heads=n_heads,
            num_key_value_heads=n_groups,
            num_hidden_layers=sizes.n_layers,
            intermediate_size=2 * self.d_model,
            vocab_size=n_tokens,
            max_position_embeddings=sizes.seq,
        )
        self.group = n_heads // n_groups
        self.spaces, start = {}, 0
        for name, size in spaces.items():
            self.spaces[name] = slice(start, start + size)
            start += size
        self.noise = slice(start, self.d_model)
        self._randomise_()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def codes(self, space: str) -> Tensor:
        """(size of the space, d_model); each row is a one-hot code."""
        return torch.eye(self.d_model)[self.spaces[space]]

    def head(self, layer: int, number: int) -> Head:
        """The weights of a head; the heads of a group share k and v."""
        return _HEADS[self.family](self, layer, number)

    def slots(self) -> list[int]:
        """Rows of a head's queries and keys that depend little on the position."""
        if self.family == "llama":  # pairs with slow rotation
            half = self.d_head // 2
            slow = range(half // 2, half)
            return [*slow, *(half + i for i in slow)]
        return list(range(4 if self.family == "gpt_neox" else 0, self.d_head))

    def plant(
        self,
        layer: int,
        number: int,
        *,
        match: tuple[Tensor, Tensor],
        move: tuple[Tensor, Tensor],
        strength: float = 4.0,
    ) -> None:
        """Make a head attend from query code i to key code i, and move codes.

        Args:
            match: Directions read by query and key, (code, d_model) each.
            move: Directions read by the value and written, (code, d_model) each.
        """
        head = self.head(layer, number)
        rows = self.slots()[: len(match[0])]
        for view in (head.query, head.key, head.value, head.out):
            view.zero_()
        head.query[rows] = SHARPNESS * match[0]
        head.key[rows] = SHARPNESS * match[1]
        head.value[: len(move[0])] = move[0]
        head.out[: len(move[1])] = strength * move[1]

    def plant_mlp(self, layer: int, read: Tensor, written: Tensor) -> None:
        """Make one neuron per code, which reads code i and writes another code."""
        rows = slice(0, len(read))
        reads, bias, writes = _MLPS[self.family](self, layer)
        for view in reads:
            view[rows] = 2.0 * read
        if bias is not None:
            bias[rows] = -4.0
        writes[rows] = written

    def answer_with(self, first: Mapping[str, int], gain: float = 2.0) -> None:
        """Make code i of each space in `first` add to the logit of token first + i."""
        read = self._unembedding()
        read[:, : self.noise.start] = 0.0
        read *= 0.1
        for space, token in first.items():
            codes = self.codes(space)
            read[token : token + len(codes)] += gain * codes

    def _unembedding(self) -> Tensor:
        if self.family == "bert":
            return self.model.classifier.weight
        return self.model.lm_head.weight

    def embed(self, space: str, tokens: Tensor, first: int = 0) -> None:
        """Add code first + i of `space` to the embedding of the i-th of `tokens`."""
        table = self.model.get_input_embeddings().weight
        table[tokens] += CODE * self.codes(space)[first : first + len(tokens)]

    def embed_positions(self, space: str) -> None:
        """Add code i of `space` to the embedding of position i."""
        table = (
            self.model.bert.embeddings.position_embeddings
            if self.family == "bert"
            else self.model.transformer.wpe
        ).weight
        table += CODE * self.codes(space)[: len(table)]

    def _randomise_(self) -> None:
        """Random weights that read all dimensions and write only the remaining ones."""
        for name, parameter in self.model.named_parameters():
            if "norm" in name.lower() or ".ln_" in name:
                continue
            scale = NOISE if parameter.dim() == 2 else NOISE / 2
            parameter.copy_(scale * self.normal(*parameter.shape))
            if any(part in name for part in _TABLES):
                parameter[:, : self.noise.start] = 0.0
            elif any(part in name for part in _WRITERS):
                is_conv = parameter.dim() == 2 and self.family == "gpt2"
                rows = parameter.T if is_conv else parameter
                if rows.dim() == 2:
                    is_head = rows.shape[1] == self.d_model
                    fan_in = self.d_head if is_head else rows.shape[1]
                    rows *= self.written / NOISE / fan_in**0.5
                rows[: self.noise.start] = 0.0
        if self.family == "bert":
            self.model.classifier.bias.zero_()


_TABLES = ("embed", "wte", "wpe")
_WRITERS = (
    *("c_proj.", "attention.dense.", "dense_4h_to_h.", "o_proj.", "down_proj."),
    "output.dense.",
)


def _untrained(family: str, **sizes: Any) -> Any:
    extra: dict[str, Any] = {}
    if family == "llama":
        extra = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    classes = sizes["vocab_size"]
    if family == "bert":
        extra = {"num_labels": classes}
    config = AutoConfig.for_model(
        family,
        **sizes,
        **extra,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None if family != "bert" else 0,
    )
    is_encoder = family == "bert"
    auto = AutoModelForTokenClassification if is_encoder else AutoModelForCausalLM
    return auto.from_config(config).eval().requires_grad_(False)


def _gpt2_head(bench: Workbench, layer: int, number: int) -> Head:
    attention = bench.model.transformer.h[layer].attn
    read = attention.c_attn.weight.T.view(3, bench.n_heads, bench.d_head, -1)
    attention.c_attn.bias.view(3, bench.n_heads, bench.d_head)[:, number] = 0.0
    out = attention.c_proj.weight.view(bench.n_heads, bench.d_head, -1)
    query, key, value = read[:, number]
    return Head(query, key, value, out[number])


def _neox_head(bench: Workbench, layer: int, number: int) -> Head:
    attention = bench.model.gpt_neox.layers[layer].attention
    read = attention.query_key_value.weight.view(bench.n_heads, 3, bench.d_head, -1)
    attention.query_key_value.bias.view(bench.n_heads, -1)[number] = 0.0
    out = attention.dense.weight.T.view(bench.n_heads, bench.d_head, -1)
    query, key, value = read[number]
    return Head(query, key, value, out[number])


def _llama_head(bench: Workbench, layer: int, number: int) -> Head:
    attention = bench.model.model.layers[layer].self_attn
    group = number // bench.group
    query = attention.q_proj.weight.view(bench.n_heads, bench.d_head, -1)[number]
    key = attention.k_proj.weight.view(-1, bench.d_head, bench.d_model)[group]
    value = attention.v_proj.weight.view(-1, bench.d_head, bench.d_model)[group]
    out = attention.o_proj.weight.T.view(bench.n_heads, bench.d_head, -1)[number]
    return Head(query, key, value, out)


def _bert_head(bench: Workbench, layer: int, number: int) -> Head:
    attention = bench.model.bert.encoder.layer[layer].attention
    rows = slice(number * bench.d_head, (number + 1) * bench.d_head)
    reads = attention.self.query, attention.self.key, attention.self.value
    for module in reads:
        module.bias[rows] = 0.0
    query, key, value = (module.weight[rows] for module in reads)
    return Head(query, key, value, attention.output.dense.weight.T[rows])


_HEADS = {
    "gpt2": _gpt2_head,
    "gpt_neox": _neox_head,
    "llama": _llama_head,
    "bert": _bert_head,
}

_Mlp = tuple[tuple[Tensor, ...], Tensor | None, Tensor]
"""Views of the input weights, (neuron, d_model), their bias, and the output weights."""


def _gpt2_mlp(bench: Workbench, layer: int) -> _Mlp:
    mlp = bench.model.transformer.h[layer].mlp
    return (mlp.c_fc.weight.T,), mlp.c_fc.bias, mlp.c_proj.weight


def _neox_mlp(bench: Workbench, layer: int) -> _Mlp:
    mlp = bench.model.gpt_neox.layers[layer].mlp
    read = mlp.dense_h_to_4h
    return (read.weight,), read.bias, mlp.dense_4h_to_h.weight.T


def _llama_mlp(bench: Workbench, layer: int) -> _Mlp:
    mlp = bench.model.model.layers[layer].mlp
    return (mlp.gate_proj.weight, mlp.up_proj.weight), None, mlp.down_proj.weight.T


def _bert_mlp(bench: Workbench, layer: int) -> _Mlp:
    block = bench.model.bert.encoder.layer[layer]
    read = block.intermediate.dense
    return (read.weight,), read.bias, block.output.dense.weight.T


_MLPS = {
    "gpt2": _gpt2_mlp,
    "gpt_neox": _neox_mlp,
    "llama": _llama_mlp,
    "bert": _bert_mlp,
}
