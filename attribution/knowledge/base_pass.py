"""One forward pass of some prompts, kept so that later passes begin at any layer.

Of a causal model the last position alone can change what is predicted there: the keys
and values of the earlier positions are computed once, and only the last position runs
again. Of a masked model all positions run again, from the changed layer up, and in the
last layer those of the masks alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from circuitcut.attribution.knowledge.prompts import Prompt, PromptBatch
from circuitcut.models.architectures import (
    architecture_of,
    block_paths,
    sites_of,
    text_module,
)
from circuitcut.models.residual.block_modules import PARTS
from circuitcut.models.residual.replayed import replayed
from circuitcut.models.spared import by_token
from circuitcut.storage.errors import UserError


@dataclass
class LayerPass:
    """What one block did in the forward pass."""

    block: nn.Module
    projection: nn.Module
    """The output projection of the MLP, whose input are the neurons."""
    args: tuple[Any, ...] = ()
    """Further arguments of the block; the states are the first one."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    states: Tensor = field(init=False)
    """(prompt, query, d_model): what entered the block."""
    activations: Tensor = field(init=False)
    """(prompt, mask, unit): the neurons where the answer is predicted."""
    written: Tensor = field(init=False)
    """(prompt, mask, d_model): what the projection made of them."""
    is_flat: bool = field(init=False)
    """Whether the projection sees prompts and queries as one axis (OPT)."""


class Earlier:
    """Keys and values of the earlier positions, for rows that are copies of prompts."""

    def __init__(self, cache: Cache | None, rows: Tensor):
        self.cache = cache
        self.rows = rows

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values of all positions, (row, head, seq, d_head)."""
        if self.cache is None:
            return keys, values
        layer: Any = self.cache.layers[layer_idx]
        n = layer.keys.shape[-2] - 1  # the last one is that of the position itself
        earlier = (part[:, :, :n][self.rows] for part in (layer.keys, layer.values))
        before_keys, before_values = earlier
        return (
            torch.cat([before_keys, keys], dim=-2),
            torch.cat([before_values, values], dim=-2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of earlier positions."""
        return 0 if self.cache is None else self.cache.get_seq_length(layer_idx) - 1


@dataclass
class BasePass:
    """The forward pass of a batch of prompts.

    Made by `run`. The model must stay as it was, and in evaluation mode.
    """

    model: nn.Module
    batch: PromptBatch
    layers: list[LayerPass]
    cache: Cache | None
    """Of a causal model, one position longer than what came before the last one."""
    place: Int[Tensor, "prompt mask"]
    """The predicting positions among those that run again."""
    returns_tuple: bool
    """Whether a block returns its states and something else."""
    first_norm: str | None
    """The norm of the last block after which only the masks' positions are needed."""
    logits: Float[Tensor, "prompt mask vocab"] = field(init=False)

    @classmethod
    def run(cls, model: nn.Module, prompts: Sequence[Prompt]) -> "BasePass":
        """One forward pass of all prompts.

        Raises:
            UserError: When there are no prompts, or the model is not of a family with
                text and neurons.
        """
        if not prompts:
            raise UserError("argument prompts must hold at least one prompt, got none")
        architecture = architecture_of(model)
        if getattr(model, "get_input_embeddings", None) is None:
            raise UserError(
                f"prompts need a language model, got {type(model).__name__}"
            )
        device = next(model.parameters()).device
        batch = PromptBatch.of(prompts, device)
        layers = [
            LayerPass(model.get_submodule(path), model.get_submodule(site.module))
            for path, site in zip(
                block_paths(model), sites_of(model, ["neurons"]), strict=True
            )
        ]
        parts = PARTS.get(model.config.model_type)  # type: ignore[union-attr,arg-type]
        returns_tuple = parts is not None and parts.returns_tuple
        base = cls(model, batch, layers, None, batch.positions, returns_tuple, None)
        with torch.no_grad():
            if architecture.is_decoder:
                base._run_causal()
            else:
                base._run_masked()
        return base

    def _run_masked(self) -> None:
        mask = (
            {"attention_mask": self.batch.real.long()} if self.batch.is_padded else {}
        )
        with self._recorded():
            logits = self.model(input_ids=self.batch.ids, **mask).logits
        self.logits = at(logits, self.batch.positions)
        config: Any = self.model.config
        parts = PARTS.get(config.model_type)
        if parts is not None and parts.norms_on_stream is not None:
            self.first_norm = parts.norms_on_stream[0]

    def _run_causal(self) -> None:
        """All positions but the last one into a cache, then the last one alone."""
        batch = self.batch
        lengths = batch.real.sum(1)  # (prompt,)
        self._check_last(lengths)
        n_earlier = int(lengths.max()) - 1
        last = batch.ids.gather(1, lengths[:, None] - 1)
        further: dict[str, Any] = {}
        if n_earlier:
            self.cache = DynamicCache()
            ids, real = batch.ids[:, :n_earlier], batch.real[:, :n_earlier].long()
            real = real * (
                torch.arange(n_earlier, device=ids.device) < lengths[:, None] - 1
            )
            if batch.is_padded:
                # nothing attends to a fully masked row, whose states would be NaN
                finite = real.index_fill(1, real.new_zeros(1), 1)
                further["attention_mask"] = finite
            base = text_module(self.model)
            base(input_ids=ids, past_key_values=self.cache, use_cache=True, **further)
            if batch.is_padded:
                real = _joined_to_last(self.cache, lengths - 1)
                seen = torch.cat([real, torch.ones_like(last)], dim=1)
                further = {"attention_mask": seen, "position_ids": lengths[:, None] - 1}
            further |= {"past_key_values": self.cache, "use_cache": True}
        self.place = torch.zeros_like(batch.positions)
        with self._recorded():
            self.logits = self.model(input_ids=last, **further).logits

    def _check_last(self, lengths: Tensor) -> None:
        if self.batch.positions.shape[1] > 1 or bool(
            (self.batch.positions[:, 0] != lengths - 1).any()
        ):
            raise UserError(
                "argument prompts must predict one token at the last position of a "
                "causal model, got another position; end the prompt there"
            )

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for layer in self.layers:
                for handle in (
                    layer.block.register_forward_pre_hook(
                        partial(_keep_arguments, layer), with_kwargs=True
                    ),
                    layer.projection.register_forward_hook(
                        partial(_keep_neurons, layer, self.place)
                    ),
                ):
                    hooks.callback(handle.remove)
            yield

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def n_queries(self) -> int:
        """Positions that run again: 1 of a causal model."""
        return self.layers[0].states.shape[1]

    def place_at(self, layer: int) -> Int[Tensor, "prompt mask"]:
        """The predicting positions among those that reach the MLP of a layer."""
        if layer < self.n_layers - 1 or self.first_norm is None:
            return self.place
        masks = torch.arange(self.place.shape[1], device=self.place.device)
        return masks.expand_as(self.place)

    def block(self, layer: int, states: Tensor, rows: Int[Tensor, "row"]) -> Tensor:
        """The output of a block for rows that are copies of prompts.

        Args:
            states: (row, query, d_model), or one row for all.
            rows: The prompt of every row of `states`.

        Returns:
            (row, query, d_model); of a masked model's last layer (row, mask, d_model).
        """
        run, n = self.layers[layer], len(self.batch.ids)
        taken = partial(_taken, rows=rows, n_prompts=n, cache=self.cache)
        args = [taken(value) for value in run.args]
        kwargs = {
            name: _of_heads(value, rows, n) if name == "alibi" else taken(value)
            for name, value in run.kwargs.items()
        }
        is_last = layer == self.n_layers - 1
        with ExitStack() as hooks:
            if is_last and self.first_norm is not None:
                norm = run.block.get_submodule(self.first_norm)
                keep_masks = partial(_keep_places, self.place[rows])
                hooks.callback(norm.register_forward_hook(keep_masks).remove)
            output = run.block(states, *args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        if is_last and self.first_norm is None:
            places = self.place[rows]
            if len(output) > len(places):
                places = places.expand(len(output), -1)
            return at(output, places)
        return output

    def predict(
        self, states: Float[Tensor, "row mask d_model"], rows: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """The probability of the answer, from the output of the last block.

        The product over the masks of an answer with several tokens.
        """
        ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        output = (states, None) if self.returns_tuple else states
        with replayed(self.model, [output] * self.n_layers, self.n_layers, 1):
            # the ids are not read; some models take id 0 for padding and warn of it
            mask = torch.ones_like(ids)
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        return self.probabilities(logits, rows)

    def probabilities(
        self, logits: Float[Tensor, "row mask vocab"], rows: Int[Tensor, "row"]
    ) -> Float[Tensor, "row"]:
        """The probability of the answer, from the logits at its masks."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        answers = self.batch.answers[rows].unsqueeze(-1)
        log_p = logits.gather(-1, answers).squeeze(-1) - logits.logsumexp(-1)
        return (log_p * self.batch.counted[rows]).sum(-1).exp()


def _joined_to_last(
    cache: Cache, lengths: Int[Tensor, "prompt"]
) -> Int[Tensor, "prompt earlier"]:
    """Move the keys and values of shorter prompts next to the last position, in place.

    A sliding window counts places in the cache, and a gap would be counted with them.

    Returns:
        1 where there is a token.
    """
    n_earlier = int(lengths.max())
    places = (
        torch.arange(n_earlier, device=lengths.device) - (n_earlier - lengths)[:, None]
    )
    index = places.clamp(min=0)[:, None, :, None]
    for layer in cache.layers:
        of_layer: Any = layer
        for name in ("keys", "values"):
            part: Tensor = getattr(of_layer, name)
            setattr(of_layer, name, part.gather(2, index.expand_as(part)))
    return (places >= 0).long()


def at(
    values: Float[Tensor, "row seq width"], places: Int[Tensor, "row mask"]
) -> Float[Tensor, "row mask width"]:
    """The values at some positions of every row."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _taken(value: Any, *, rows: Tensor, n_prompts: int, cache: Cache | None) -> Any:
    """An argument of a block, for rows that are copies of the batch's."""
    if isinstance(value, Cache):
        return Earlier(cache, rows)
    if isinstance(value, tuple):
        return tuple(
            _taken(v, rows=rows, n_prompts=n_prompts, cache=cache) for v in value
        )
    is_of_rows = isinstance(value, Tensor) and value.dim() > 1
    if is_of_rows and n_prompts > 1 and value.shape[0] == n_prompts:
        return value[rows]
    return value


def _of_heads(value: Tensor, rows: Tensor, n_prompts: int) -> Tensor:
    """Bloom's slopes, (prompt · head, 1, seq), for rows that are copies of prompts."""
    return value.unflatten(0, (n_prompts, -1))[rows].flatten(0, 1)


def _keep_arguments(
    layer: LayerPass, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    layer.kwargs = dict(kwargs)
    if args:
        layer.states, layer.args = args[0], args[1:]
    else:
        layer.states = layer.kwargs.pop("hidden_states")


def _keep_neurons(
    layer: LayerPass, place: Tensor, _: nn.Module, args: tuple[Any, ...], output: Tensor
) -> None:
    layer.is_flat = output.dim() == 2
    shape = layer.states.shape[:2]
    layer.activations = at(by_token(args[0], shape), place).clone()
    layer.written = at(by_token(output, shape), place).clone()


def _keep_places(places: Tensor, _: nn.Module, __: Any, output: Tensor) -> Tensor:
    if len(output) > len(places):
        places = places.expand(len(output), -1)
    return at(output, places)
