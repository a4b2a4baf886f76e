"""Planted circuits: models built by hand, with their behaviour and its true edges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuitcut.benchmarks.planted.models import Sizes, Workbench
from circuitcut.benchmarks.planted.task import Draw, GuessedTask, PlantedTask
from circuitcut.masks.ablation import AblationKind


@dataclass(frozen=True)
class PlantedCircuit:
    """A model built by hand, its examples and its true edges."""

    model: Any
    truth: frozenset[str]
    """Names of the true edges: each is necessary, and together they are sufficient."""
    draw: Draw
    ablation: AblationKind = "zero"
    """Ablation value for which `truth` holds; with others, other edges are needed."""
    task: type[PlantedTask] = PlantedTask


N_KINDS, N_VALUES = 3, 6
N_KIND_TOKENS = N_KINDS * N_VALUES + N_KINDS
N_TOKENS, SEQ = 10, 8


def copying(seed: int, family: str = "gpt2", **sizes: Any) -> PlantedCircuit:
    """The last token asks for a kind; a head copies the value of that kind's token."""
    bench = _kinds_bench(seed, family, {"ans": N_VALUES}, **sizes)
    layer = _drawn(bench, bench.n_layers)
    number = _drawn(bench, bench.n_heads // bench.group) * bench.group
    _plant_finder(bench, layer, number, "value", "ans")
    bench.answer_with({"ans": 0})
    truth = _input_to(bench, layer, number) | {f"a{layer}.h{number}->logits"}
    return PlantedCircuit(bench.model, frozenset(truth), _draw_kinds)


def induction(seed: int, family: str = "gpt2", **sizes: Any) -> PlantedCircuit:
    """... A B ... A is followed by B. One head writes the previous token; a second head
    finds the position whose previous token is the current one and copies its token.
    """
    bench = Workbench(
        family,
        n_tokens=N_TOKENS,
        spaces={"token": N_TOKENS, "pos": SEQ, "before": N_TOKENS, "ans": N_TOKENS},
        seed=seed,
        sizes=Sizes(**sizes),
    )
    bench.embed("token", torch.arange(N_TOKENS))
    bench.embed_positions("pos")
    first, second = (_drawn(bench, bench.n_heads) for _ in range(2))
    _plant_induction(bench, first, second, "ans")
    bench.answer_with({"ans": 0})
    early, late = f"a0.h{first}", f"a1.h{second}"
    truth = _input_to(bench, 0, first) | {f"{late}->logits"}
    truth |= {f"input->{late}<q>", f"{early}->{late}<k>", f"input->{late}<v>"}
    return PlantedCircuit(bench.model, frozenset(truth), _draw_repeated)


def mlp_edge(seed: int, family: str = "gpt2", **sizes: Any) -> PlantedCircuit:
    """As `copying`, but an MLP maps the copied value to the answer."""
    spaces = {"found": N_VALUES, "ans": N_VALUES}
    bench = _kinds_bench(seed, family, spaces, **sizes)
    number = _drawn(bench, bench.n_heads // bench.group) * bench.group
    layer = 1 if family == "gpt_neox" else _drawn(bench, bench.n_layers)
    _plant_finder(bench, 0, number, "value", "found", strength=1.0)
    bench.plant_mlp(layer, bench.codes("found"), bench.codes("ans").roll(1, 0))
    bench.answer_with({"ans": 0})
    truth = _input_to(bench, 0, number)
    truth |= {f"a0.h{number}->m{layer}", f"m{layer}->logits"}
    return PlantedCircuit(bench.model, frozenset(truth), _draw_next_kinds)


def chain(
    seed: int, family: str = "gpt2", *, n_layers: int = 3, **sizes: Any
) -> PlantedCircuit:
    """As `mlp_edge`, but with two MLPs in sequence."""
    spaces = {"found": N_VALUES, "next": N_VALUES, "ans": N_VALUES}
    bench = _kinds_bench(seed, family, spaces, n_layers=n_layers, **sizes)
    number = _drawn(bench, bench.n_heads)
    _plant_finder(bench, 0, number, "value", "found", strength=1.0)
    first = _drawn(bench, n_layers - 1)
    second = first + 1 + _drawn(bench, n_layers - 1 - first)
    bench.plant_mlp(first, bench.codes("found"), bench.codes("next").roll(1, 0))
    bench.plant_mlp(second, bench.codes("next"), bench.codes("ans").roll(1, 0))
    bench.answer_with({"ans": 0})
    truth = _input_to(bench, 0, number)
    truth |= {f"a0.h{number}->m{first}", f"m{first}->m{second}", f"m{second}->logits"}
    return PlantedCircuit(
        bench.model, frozenset(truth), partial(_draw_next_kinds, by=2)
    )


def value_before(seed: int, family: str = "gpt2", **sizes: Any) -> PlantedCircuit:
    """As `copying`, but the answer is the value of the token before the one of this
    kind: the values of one head are the output of another head.
    """
    spaces = {"pos": SEQ, "before": N_VALUES, "ans": N_VALUES}
    bench = _kinds_bench(seed, family, spaces, **sizes)
    bench.embed_positions("pos")
    first, second = (_drawn(bench, bench.n_heads) for _ in range(2))
    _plant_before(bench, first, "value", strength=1.0)
    _plant_finder(bench, 1, second, "before", "ans")
    bench.answer_with({"ans": 0})
    early, late = f"a0.h{first}", f"a1.h{second}"
    truth = _input_to(bench, 0, first) | {f"{late}->logits"}
    truth |= {f"input->{late}<q>", f"input->{late}<k>", f"{early}->{late}<v>"}
    return PlantedCircuit(bench.model, frozenset(truth), partial(_draw_kinds, back=1))


def two_behaviours(seed: int, family: str = "gpt2") -> PlantedCircuit:
    """`copying` and, on other tokens, `induction`, which is to be retained."""
    of_induction = {"token": N_TOKENS, "pos": SEQ, "before": N_TOKENS, "next": N_TOKENS}
    bench = _kinds_bench(
        seed, family, {"ans": N_VALUES, **of_induction}, n_others=N_TOKENS, n_heads=8
    )
    bench.embed("token", torch.arange(N_KIND_TOKENS, N_KIND_TOKENS + N_TOKENS))
    bench.embed_positions("pos")
    layer = _drawn(bench, bench.n_layers)
    number, first, second = torch.randperm(8, generator=bench.rng)[:3].tolist()
    _plant_finder(bench, layer, number, "value", "ans")
    _plant_induction(bench, first, second, "next")
    bench.answer_with({"ans": 0, "next": N_KIND_TOKENS})
    truth = _input_to(bench, layer, number) | {f"a{layer}.h{number}->logits"}

    def draw(size: int, rng: torch.Generator) -> tuple[Tensor, ...]:
        ids, answers = _draw_kinds(size, rng)
        repeated, next_tokens = _draw_repeated(size, rng)
        is_concept = torch.arange(size) % 2 == 0
        return (
            torch.where(is_concept[:, None], ids, repeated + N_KIND_TOKENS),
            torch.where(is_concept, answers, next_tokens + N_KIND_TOKENS),
            is_concept,
        )

    return PlantedCircuit(bench.model, frozenset(truth), draw, task=GuessedTask)


def _kinds_bench(
    seed: int,
    family: str,
    spaces: Mapping[str, int],
    *,
    n_others: int = 0,
    **sizes: Any,
) -> Workbench:
    """A model whose tokens have kinds and values, with further spaces and tokens.

    Token number kind * N_VALUES + value has this kind and value. The next N_KINDS
    tokens ask for a kind; `n_others` further tokens follow.
    """
    bench = Workbench(
        family,
        n_tokens=N_KIND_TOKENS + n_others,
        spaces={"asked": N_KINDS, "kind": N_KINDS, "value": N_VALUES, **spaces},
        seed=seed,
        sizes=Sizes(**sizes),
    )
    for token in range(N_KINDS * N_VALUES):
        kind, value = divmod(token, N_VALUES)
        bench.embed("kind", torch.tensor([token]), kind)
        bench.embed("value", torch.tensor([token]), value)
    for kind in range(N_KINDS):
        bench.embed("asked", torch.tensor([N_KINDS * N_VALUES + kind]), kind)
    return bench


def _plant_finder(
    bench: Workbench,
    layer: int,
    number: int,
    read: str,
    written: str,
    strength: float = 4.0,
) -> None:
    """Plant a head that attends to the token of the requested kind and moves a code."""
    bench.plant(
        layer,
        number,
        match=(bench.codes("asked"), bench.codes("kind")),
        move=(bench.codes(read), bench.codes(written)),
        strength=strength,
    )


def _plant_before(bench: Workbench, number: int, read: str, strength: float) -> None:
    """Plant a head in the first layer that writes a code of the previous token."""
    positions = bench.codes("pos")
    bench.plant(
        0,
        number,
        match=(positions[1:], positions[:-1]),
        move=(bench.codes(read), bench.codes("before")),
        strength=strength,
    )


def _plant_induction(bench: Workbench, first: int, second: int, written: str) -> None:
    """Plant two heads that predict the token after the earlier copy of this token."""
    tokens = bench.codes("token")
    _plant_before(bench, first, "token", strength=0.5)
    bench.plant(
        1,
        second,
        match=(tokens, bench.codes("before")),
        move=(tokens, bench.codes(written)),
    )


def _input_to(bench: Workbench, layer: int, number: int) -> set[str]:
    """Edges from the input to a head's q and to its group's k and v."""
    head, group = (f"a{layer}.h{n}" for n in (number, number // bench.group))
    return {f"input->{head}<q>", f"input->{group}<k>", f"input->{group}<v>"}


def _drawn(bench: Workbench, n: int) -> int:
    return int(torch.randint(n, (), generator=bench.rng))


def _draw_kinds(
    size: int, rng: torch.Generator, back: int = 0
) -> tuple[Tensor, Tensor]:
    """Seven tokens, exactly one of which has the kind that the eighth asks for.

    The answer is the value of the token `back` positions before that one.
    """
    seq = 8
    asked = torch.randint(N_KINDS, (size,), generator=rng)
    others = torch.randint(1, N_KINDS, (size, seq), generator=rng)
    kinds = (asked[:, None] + others) % N_KINDS
    place = torch.randint(back, seq - 1, (size,), generator=rng)
    rows = torch.arange(size)
    kinds[rows, place] = asked
    values = torch.randint(N_VALUES, (size, seq), generator=rng)
    ids = kinds * N_VALUES + values
    ids[:, -1] = N_KINDS * N_VALUES + asked
    return ids, values[rows, place - back]


def _draw_next_kinds(
    size: int, rng: torch.Generator, by: int = 1
) -> tuple[Tensor, Tensor]:
    """As `_draw_kinds`, but the answer is this value minus `by`, modulo N_VALUES."""
    ids, values = _draw_kinds(size, rng)
    return ids, (values - by) % N_VALUES


def _draw_repeated(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seven different tokens; the eighth repeats one of them, not the first or last."""
    ids = torch.rand(size, N_TOKENS, generator=rng).argsort(1)[:, :SEQ]
    place = torch.randint(1, SEQ - 2, (size,), generator=rng)
    rows = torch.arange(size)
    ids[:, -1] = ids[rows, place]
    return ids, ids[rows, place + 1]


def _ablated_by(
    ablation: AblationKind, build: Callable[[int], PlantedCircuit], seed: int
) -> PlantedCircuit:
    return replace(build(seed), ablation=ablation)


CIRCUITS: dict[str, Callable[[int], PlantedCircuit]] = {
    "copying head": copying,
    "induction head": induction,
    "MLP edge": mlp_edge,
    "post-norm encoder": partial(copying, family="bert"),
}
_LARGE: dict[str, Any] = {"n_layers": 4, "n_heads": 8, "d_head": 16, "written": 0.06}
_grouped = partial(copying, family="llama", n_groups=2, n_layers=3)
_parallel = partial(mlp_edge, family="gpt_neox")
VARIATIONS: dict[str, Callable[[int], PlantedCircuit]] = {
    "copying, Llama, grouped queries, mean": partial(_ablated_by, "mean", _grouped),
    "MLP edge, NeoX, counterfactual": partial(_ablated_by, "counterfactual", _parallel),
    "MLP edge, Llama": partial(mlp_edge, family="llama"),
    "induction, 3 layers of 5 heads": partial(
        induction, n_layers=3, n_heads=5, d_head=16
    ),
    "two MLPs, 3 layers": partial(chain, written=0.1),
    "two MLPs, Llama": partial(chain, family="llama", written=0.1),
    "values of values, 8 heads": partial(value_before, n_heads=8, d_head=16),
    **{
        f"{name}, 1,519 edges": partial(build, **_LARGE)
        for name, build in (
            ("copying head", copying),
            ("induction head", induction),
            ("MLP edge", mlp_edge),
            ("two MLPs", chain),
            ("values of values", value_before),
        )
    },
}
"""Circuits that were not used to choose default settings."""
