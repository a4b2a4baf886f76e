"""Apply gates to an unmodified model with hooks, for the duration of a `with` block.

Every gated activation x becomes keep * x + (1 - keep) * a, with a the ablation value.
A `weights` site computes W * keep times the input, plus W * (1 - keep) times the
ablation value of the input. All `edges` are gated together: the model's blocks run as
one stack (`masks/edges/stack.py`). Nothing is random here: gates are sampled before,
because gradient checkpointing runs the hooks twice.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.edges.sites import (
    flat_gates,
    graph_at,
    modules_and_edges,
    writer_values,
)
from circuitcut.masks.mixing import Rows, mix
from circuitcut.masks.neurons.rule_gate import RuleGate
from circuitcut.masks.uncopied import uncopied
from circuitcut.models.architectures import text_module
from circuitcut.models.sites import Site
from circuitcut.models.spared import (
    FIRST_POSITION,
    by_token,
    first_positions,
    spared_positions,
)
from circuitcut.storage.errors import UserError

_FEW = 0.1
"""Below this share of cut entries, index operations on them are faster than a
multiplication of all entries."""


@contextmanager
def gated(
    model: nn.Module,
    sites: Sequence[Site],
    keep: Mapping[str, Float[Tensor, "_unit"] | Bool[Tensor, "_unit"]],
    ablated: AblationValues,
    *,
    special_ids: Sequence[int] = (),
) -> Iterator[None]:
    """Apply the gates `keep` to `model` inside the context; then restore the model.

    Contexts on activations can be nested: the inner one gates the result of the outer
    one. Contexts on the weights of one module cannot be nested. With gradient
    checkpointing the backward pass must also run inside the context. With `special_ids`
    each context allows one forward pass. Inside the context the model cannot be copied
    or pickled: the copy would stay cut.

    Args:
        keep: Gates of every site, (n_units,) by site name. Float gates in [0, 1] can
            require a gradient; bools are a frozen mask and are faster.
        ablated: Ablation values; see `AblationValues` for shapes. Values per position
            are indexed from the first token of the sequence, including the tokens in a
            key-value cache.
        special_ids: The gates do not act at positions with these `input_ids`, nor, if
            `FIRST_POSITION` is among them, at the first position of a text. Of these,
            gates on edges spare the first position alone, and only in causal models.

    Raises:
        UserError: When a site is not in the model, or its gates or ablation values have
            the wrong shape.
    """
    batch = _Batch(special_ids, ablated.rule.positions if ablated.rule else ())
    modules, edges = modules_and_edges(sites)
    if edges and ablated.rule is not None:
        raise UserError(
            f"ablation {ablated.kind} by a rule is for neurons, got edges; use zero, "
            "mean or counterfactual values"
        )
    gates = [
        gate
        for site in modules
        if (gate := _gate(model, site, keep, ablated, batch)) is not None
    ]
    with ExitStack() as stack:
        hooked = [module for gate in gates for module in gate.modules]
        stack.enter_context(uncopied([model, *hooked]))
        if special_ids or not ablated.is_pooled:
            # not the model: the base also runs alone, without its head
            texts = text_module(model)
            handle = texts.register_forward_pre_hook(batch.read, with_kwargs=True)
            stack.callback(handle.remove)
        for gate in gates:
            stack.callback(gate.install())
        if edges:
            activation_gates = [
                gate.wide for gate in gates if isinstance(gate, _ActivationGate)
            ]
            stack.enter_context(
                _edges_gated(model, edges, keep, ablated, activation_gates, batch)
            )
        yield


class _Batch:
    """Facts about the inputs of the current forward pass that the gates need."""

    def __init__(self, special_ids: Sequence[int], positions: Sequence[int] = ()):
        self.special_ids = tuple(special_ids)
        self.positions = tuple(positions)
        self.rows: Rows | None = None
        self.shape: torch.Size | None = None
        """(batch, seq) of the inputs, where they are texts."""
        self.n_cached = 0
        self.is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the gates on activations and weights do nothing."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def read(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.n_cached = 0 if cache is None else cache.get_seq_length()
        ids = kwargs.get("input_ids", args[0] if args else None)
        inputs = kwargs.get("inputs_embeds") if ids is None else ids
        self.shape = None if inputs is None else inputs.shape[:2]
        if not self.special_ids and not self.positions:
            return
        if ids is None:
            name = "special_ids" if self.special_ids else "positions"
            raise UserError(
                f"argument {name} needs a model called with input_ids, got none; pass "
                f"input_ids or no {name}"
            )
        mask = kwargs.get("attention_mask")
        spared = spared_positions(ids, mask, self.special_ids, self.n_cached)
        if self.positions:
            seq = torch.arange(ids.shape[1], device=ids.device) + self.n_cached
            place = seq - first_positions(ids, mask)[:, None]  # (batch, seq)
            asked = torch.tensor(self.positions, device=ids.device)
            spared |= ~torch.isin(place, asked)
        self.rows = spared.nonzero(as_tuple=True)


# Methods and not closures: the type checks of the tests wrap every function definition.
class _Gate(ABC):
    """The gates of one site, to be installed in its module."""

    def __init__(
        self,
        module: nn.Module,
        site: Site,
        keep: Tensor,
        value: Tensor | None,
        batch: _Batch,
    ):
        self.module: Any = module
        self.site = site
        self.keep = keep
        self.value = value
        self.batch = batch

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Modules that are changed."""
        return (self.module,)

    @abstractmethod
    def install(self) -> Callable[[], object]:
        """Install the gates; return a function that removes them."""

    def value_at(self, x: Tensor) -> Tensor | None:
        """The ablation values of the positions of `x`, broadcastable to it."""
        if self.value is None:
            return None
        value = self.value.to(device=x.device, dtype=x.dtype)
        if value.dim() > 1 and x.dim() > 2:
            first = self.batch.n_cached
            value = value[..., first : first + x.shape[-2], :]
        if value.shape != x.shape[x.dim() - value.dim() :]:
            raise UserError(
                f"the ablation values at {self.site.name} have the shape "
                f"{tuple(value.shape)}, the activations {tuple(x.shape)}; record the "
                "values on inputs of this shape"
            )
        return value


class _ActivationGate(_Gate):
    """x -> keep * x + (1 - keep) * value on the input or output of a module."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        # bools are a frozen mask; as floats they do not require a gradient
        keep = self.keep.float() if self.keep.dtype == torch.bool else self.keep
        size = self.site.unit_size
        self.wide = keep.repeat_interleave(size) if size > 1 else keep
        self.cut: Tensor | None = None
        if self.keep.dtype == torch.bool:
            cut = (self.wide == 0).nonzero().squeeze(1)
            self.cut = cut if len(cut) < _FEW * self.site.width else None

    def install(self) -> Callable[[], object]:
        if self.site.kind == "hidden":
            return self.module.register_forward_hook(self.on_output).remove
        return self.module.register_forward_pre_hook(self.on_input).remove

    def on_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.apply(args[0]), *args[1:])

    def on_output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.apply(output[0]), *output[1:])
        return self.apply(output)

    def apply(self, x: Tensor) -> Tensor:
        if self.batch.is_paused:
            return x
        self.site.check_width(x)
        wide, cut = self.wide.to(x.device), self.cut
        cut = None if cut is None else cut.to(x.device)
        tokens = by_token(x, self.batch.shape)
        mixed = mix(tokens, wide, self.value_at(tokens), self.batch.rows, cut)
        return mixed.view_as(x)


class _WeightGate(_Gate):
    """Replaces the forward method of one projection by one that uses W * keep."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        path, module = self.site.module, self.module
        if not isinstance(module, nn.Linear | Conv1D):
            raise UserError(
                f"{path} is a {type(module).__name__}; weights can be cut in Linear "
                "and Conv1D modules only"
            )
        if module.weight.numel() != self.site.n_units:
            raise UserError(
                f"{path} has {module.weight.numel()} weights, the mask is for "
                f"{self.site.n_units} weights; this mask is for another model"
            )
        if "forward" in vars(module):
            raise UserError(
                f"the forward of {path} is replaced already; masks on the weights of "
                "one module cannot be nested, so leave the other context first"
            )

    def install(self) -> Callable[[], object]:
        vars(self.module)["forward"] = self.forward
        return self.remove

    def remove(self) -> None:
        vars(self.module).pop("forward", None)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.module.weight, self.module.bias
        if self.batch.is_paused:
            return self.linear(x, weight, bias)
        keep = self.keep.to(device=weight.device, dtype=weight.dtype).view_as(weight)
        is_flat, x = x.dim() == 2, by_token(x, self.batch.shape)
        ablated_input = self.value_at(x)
        output = self.linear(x, weight * keep, bias)
        if ablated_input is not None:
            output = output + self.linear(ablated_input, weight * (1 - keep), None)
        rows = self.batch.rows
        if rows is not None:
            output[rows] = self.linear(x[rows], weight, bias)
        return output.flatten(0, -2) if is_flat else output

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stored = weight.T if isinstance(self.module, Conv1D) else weight
        return nn.functional.linear(x, stored, bias)


def _gate(
    model: nn.Module,
    site: Site,
    keep: Mapping[str, Tensor],
    ablated: AblationValues,
    batch: _Batch,
) -> _Gate | RuleGate | None:
    """The gates of one site; None if a frozen mask keeps all its units."""
    try:
        module = model.get_submodule(site.module)
    except AttributeError as error:
        raise UserError(
            f"the model has no module {site.module!r}; this mask is for another model"
        ) from error
    gates = _gates_at(site, keep)
    if gates.dtype == torch.bool and bool(gates.all()):
        return None
    if ablated.rule is not None:
        return RuleGate(model, site, gates, ablated, batch)
    kind = _WeightGate if site.kind == "weights" else _ActivationGate
    return kind(module, site, gates, value_of(ablated, site), batch)


def _gates_at(site: Site, keep: Mapping[str, Tensor]) -> Tensor:
    if site.name not in keep or keep[site.name].shape != (site.n_units,):
        got = tuple(keep[site.name].shape) if site.name in keep else "none"
        raise UserError(
            f"argument keep must hold {site.n_units} gates at {site.name}, got {got}"
        )
    return keep[site.name]


@contextmanager
def _edges_gated(
    model: nn.Module,
    sites: Sequence[Site],
    keep: Mapping[str, Tensor],
    ablated: AblationValues,
    activation_gates: Sequence[Tensor],
    batch: _Batch,
) -> Iterator[None]:
    """Gate all edge sites as one stack; no change if a frozen mask keeps every edge."""
    # imported here because it loads the edge engine
    from circuitcut.masks.edges.gating import edge_gated, stack_of

    gates = [_gates_at(site, keep) for site in sites]
    stack = stack_of(model, graph_at(sites))
    if all(gate.dtype == torch.bool and bool(gate.all()) for gate in gates):
        yield
        return
    value = value_of(ablated, sites[-1])
    rows = None if value is None else writer_values(sites[-1], value)
    with edge_gated(
        stack,
        flat_gates(sites, keep),
        rows,
        activation_gates,
        spare_first=FIRST_POSITION in batch.special_ids,
        pause=batch.paused,
    ):
        yield


def value_of(ablated: AblationValues, site: Site) -> Tensor | None:
    """The ablation value of a site; None means zero, which is faster.

    Raises:
        UserError: When `ablated` has no value at this site, or is a rule.
    """
    if ablated.rule is not None:
        raise UserError(
            f"ablation {ablated.kind} by a rule has no one value at {site.name}; for "
            "this method take zero or mean at all tokens"
        )
    if ablated.kind == "zero":
        return None
    if site.name not in ablated.values:
        advice = (
            "record them on the paired inputs with record_values"
            if ablated.kind == "counterfactual"
            else "compute them for these sites with mean_values"
        )
        raise UserError(
            f"argument ablated has no {ablated.kind} values at {site.name}; {advice}"
        )
    return ablated.values[site.name]
