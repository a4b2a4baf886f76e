"""Causal tracing: which hidden states bring a fact's object back from noise.

K. Meng, D. Bau, A. Andonian and Y. Belinkov (2022), "Locating and Editing Factual
Associations in GPT", https://arxiv.org/abs/2202.05262, section 2. Three runs of a
prompt: clean; corrupted, with Gaussian noise added to the embeddings of the subject's
tokens; and corrupted with one state restored, what a block, its MLP or its attention
writes at one token in the clean run. Of the object's probability P,

    total effect    TE      = P(clean) - P(corrupted)
    indirect effect IE[l,i] = P(corrupted, layer l at token i restored) - P(corrupted),

means over the draws of noise. MLPs and attention are restored in a window of layers
around l, as there. Normalised, an effect is the sum of IE over prompts by that of TE.

Departures: an object of several tokens counts whole, by the product of their
probabilities behind each other; the mean over the tokens of a class (`token_classes`)
is taken in each prompt first.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.models.architectures import block_paths, sites_of
from circuitcut.models.residual.replayed import record_blocks, replayed
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import Progress
from circuitcut.tasks.selected_logits import logits_at

Restored = Literal["hidden", "mlp", "attention"]
TokenClass = Literal[
    "before", "first subject", "middle subject", "last subject", "after", "last"
]
CLASSES: tuple[TokenClass, ...] = (
    *("before", "first subject", "middle subject", "last subject", "after", "last"),
)
POSITIONS = 2048
"""Tokens in one forward pass, copies counted."""
LEAST_EFFECT = 0.001
"""Mean total effect, in probability, below which no share of it is given."""
N_RESAMPLED = 1000
"""Resamples of the prompts, for intervals."""


@dataclass(frozen=True)
class TracedPrompt:
    """One prompt in tokens, with its subject and its object."""

    input_ids: tuple[int, ...]
    """The prompt, and of a causal model the object's tokens but the last."""
    subject: tuple[int, int]
    """The subject's first token, and one past its last."""
    positions: tuple[int, ...]
    """Where each token of the object is predicted; the first is the prompt's `last`."""
    answer_ids: tuple[int, ...]
    """The object's tokens."""

    def __post_init__(self) -> None:
        first, stop = self.subject
        if not 0 <= first < stop <= len(self.input_ids):
            raise UserError(
                f"the subject must be tokens of the prompt's {len(self.input_ids)}, "
                f"got {first} to {stop}"
            )

    @property
    def n_tokens(self) -> int:
        """Tokens that are restored: those up to the first prediction or the subject."""
        return max(self.positions[0] + 1, self.subject[1])


@dataclass(frozen=True)
class TraceSettings:
    """What is corrupted, and what is restored."""

    restored: tuple[Restored, ...] = ("hidden", "mlp", "attention")
    noise: float = 3.0
    """Standard deviation of the noise, in those of the subjects' embeddings."""
    n_noise: int = 10
    """Draws of noise a prompt."""
    window: int = 10
    """Layers of MLPs or attention that are restored together; of hidden states 1."""
    layers: tuple[int, ...] = ()
    """Centres of the windows; () is every layer."""
    seed: int = 0


@dataclass(frozen=True)
class Trace:
    """The runs of one prompt, means over the draws of noise."""

    clean: float
    """P(object) of the plain model."""
    corrupted: float
    restored: Mapping[Restored, Float[np.ndarray, "layer token"]]
    """P(object) with one token's state restored, a row for each of the layers."""


def traces(
    model: nn.Module,
    prompts: Sequence[TracedPrompt],
    settings: TraceSettings,
    *,
    sigma: float | None = None,
) -> list[Trace]:
    """The traces of all prompts; the noise depends on the seed and a prompt's number.

    Args:
        sigma: Standard deviation of the embeddings; None: that of the subjects' tokens
            of all `prompts` (`embedding_deviation`).
    """
    if sigma is None:
        sigma = embedding_deviation(model, prompts)
    layers = settings.layers or tuple(range(len(block_paths(model))))
    n_steps = len(prompts) * len(layers) * len(settings.restored)
    found: list[Trace] = []
    with (
        evaluating(model),
        torch.no_grad(),
        Progress("causal tracing", 0, n_steps, unit="layer", summary=False) as bar,
    ):
        for number, prompt in enumerate(prompts):
            runs = PromptRuns.of(model, prompt, settings, sigma, number)
            restored: dict[Restored, np.ndarray] = {}
            for kind in settings.restored:
                rows = []
                for layer in layers:
                    tokens = [(token,) for token in range(prompt.n_tokens)]
                    rows.append(runs.restored(kind, layer, tokens))
                    n_before = number * len(settings.restored) + len(restored)
                    bar.advance(n_before * len(layers) + len(rows) - 1)
                restored[kind] = np.array(rows)
            found.append(Trace(runs.clean, runs.corrupted, restored))
    return found


def embedding_deviation(model: Any, prompts: Sequence[TracedPrompt]) -> float:
    """Standard deviation of the embeddings of all subjects' tokens."""
    ids = [i for p in prompts for i in p.input_ids[p.subject[0] : p.subject[1]]]
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        vectors = embedding(torch.tensor(ids, device=embedding.weight.device))
    return vectors.double().std().item()


def window_of(centre: int, width: int, n_layers: int) -> range:
    """The layers around a centre, fewer at the model's ends."""
    return range(max(0, centre - width // 2), min(n_layers, centre + (width + 1) // 2))


@dataclass
class PromptRuns:
    """The clean and the corrupted run of one prompt, from which states are restored."""

    model: Any
    prompt: TracedPrompt
    settings: TraceSettings
    modules: Mapping[Restored, Sequence[str]]
    """Of every layer, the module whose output is restored."""
    states: Mapping[str, Float[Tensor, "seq d_model"]]
    """Its output in the clean run."""
    noise: Float[Tensor, "draw subject d_model"]
    recorded: Sequence[Any]
    """Outputs of all blocks in the corrupted run."""
    clean: float
    corrupted: float

    @classmethod
    def of(
        cls,
        model: Any,
        prompt: TracedPrompt,
        settings: TraceSettings,
        sigma: float,
        number: int,
    ) -> "PromptRuns":
        """Run the model clean and corrupted.

        Args:
            sigma: Standard deviation of the embeddings.
            number: Of the prompt; with the seed it decides the noise.
        """
        modules: dict[Restored, list[str]] = {"hidden": block_paths(model)}
        if "mlp" in settings.restored:
            modules["mlp"] = [s.module for s in sites_of(model, ["neurons"])]
        if "attention" in settings.restored:
            modules["attention"] = [s.module for s in sites_of(model, ["heads"])]
        weight = model.get_input_embeddings().weight
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        first, stop = prompt.subject
        shape = settings.n_noise, stop - first, weight.shape[1]
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        noise = (settings.noise * sigma * noise).to(weight)
        states: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for path in {path for of_kind in modules.values() for path in of_kind}:
                keep = partial(_keep, states, path)
                module = model.get_submodule(path)
                hooks.callback(module.register_forward_hook(keep).remove)
            clean = _probabilities(model, prompt, 1).item()
        corrupted: list[Tensor] = []

        def run() -> None:
            with noisy(model, noise, prompt.subject, 1):
                corrupted.append(_probabilities(model, prompt, settings.n_noise))

        recorded = record_blocks(model, run)
        return cls(
            model, prompt, settings, modules, states, noise, recorded, clean,
            corrupted[0].mean().item(),
        )  # fmt: skip

    def restored(
        self, kind: Restored, layer: int, groups: Sequence[Sequence[int]]
    ) -> list[float]:
        """P(object) with the clean states of each group of tokens restored.

        Args:
            layer: Centre of the window.
            groups: Tokens that are restored together, in a run of their own.
        """
        width = 1 if kind == "hidden" else self.settings.window
        n_layers = len(self.modules["hidden"])
        window = window_of(layer, width, n_layers)
        n_noise = self.settings.n_noise
        n_rows = n_noise * len(self.prompt.input_ids)
        n_at_once = max(1, POSITIONS // n_rows)
        values: list[float] = []
        for start in range(0, len(groups), n_at_once):
            piece = groups[start : start + n_at_once]
            with ExitStack() as context:
                context.enter_context(
                    replayed(self.model, self.recorded, window.start, len(piece))
                )
                subject = self.prompt.subject
                noise = noisy(self.model, self.noise, subject, len(piece))
                context.enter_context(noise)
                for number in window:
                    path = self.modules[kind][number]
                    module = self.model.get_submodule(path)
                    put = partial(_put, self.states[path], piece)
                    context.callback(module.register_forward_hook(put).remove)
                p = _probabilities(self.model, self.prompt, len(piece) * n_noise)
            values += p.view(len(piece), n_noise).mean(1).tolist()
        return values


@contextmanager
def noisy(
    model: Any, noise: Tensor, subject: tuple[int, int], n_copies: int
) -> Iterator[None]:
    """Add the noise to the embeddings of the subject's tokens inside the context.

    Args:
        noise: (draw, subject token, d_model); rows are copies of all draws.
    """

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, slice(*subject)] += noise.repeat(n_copies, 1, 1)
        return changed

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _keep(states: dict[str, Tensor], path: str, _: Any, __: Any, output: Any) -> None:
    first = output[0] if isinstance(output, tuple) else output
    states[path] = first.reshape(-1, first.shape[-1]).clone()  # (seq, d_model)


def _put(
    states: Tensor, groups: Sequence[Sequence[int]], _: Any, __: Any, output: Any
) -> Any:
    """Put clean states in at each group's tokens, in the rows of its copy."""
    first = output[0] if isinstance(output, tuple) else output
    changed = first.clone()
    # (group, draw, seq, d_model); some modules see batch and seq as one axis
    by_group = changed.view(len(groups), -1, *states.shape)
    for rows, tokens in zip(by_group, groups, strict=True):
        rows[:, list(tokens)] = states[list(tokens)]
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _probabilities(
    model: nn.Module, prompt: TracedPrompt, n_rows: int
) -> Float[Tensor, "row"]:
    """Probability of the whole object in every row of the batch."""
    device = next(model.parameters()).device
    ids = torch.tensor([prompt.input_ids], device=device).repeat(n_rows, 1)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, list(prompt.positions)] = True
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    log_p = logits_at(model, inputs, where).double().log_softmax(-1)
    by_row = log_p.view(n_rows, len(prompt.positions), -1)
    answers = torch.tensor(prompt.answer_ids, device=device)
    taken = by_row.gather(2, answers.view(1, -1, 1).expand(n_rows, -1, 1))
    return taken.sum((1, 2)).exp()


def token_classes(prompt: TracedPrompt) -> list[TokenClass]:
    """The class of every restored token; a subject's only token is its last."""
    first, stop = prompt.subject
    classes: list[TokenClass] = []
    for token in range(prompt.n_tokens):
        if token < first:
            classes.append("before")
        elif token == stop - 1:
            classes.append("last subject")
        elif token == first:
            classes.append("first subject")
        elif token < stop:
            classes.append("middle subject")
        elif token == prompt.positions[0]:
            classes.append("last")
        else:
            classes.append("after")
    if prompt.positions[0] < first:  # a mask before the subject
        classes[prompt.positions[0]] = "last"
    return classes


def effects_table(
    prompts: Sequence[TracedPrompt],
    found: Sequence[Trace],
    settings: TraceSettings,
    layers: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for each restored kind, class of tokens and layer, over all prompts.

    Returns:
        Rows with `restored`, `tokens` (the class), `layer`, `n_prompts` (with such a
        token), `indirect` (mean IE), `normalised` (sum of IE by sum of TE; None where
        the mean TE is below `LEAST_EFFECT`) and `interval`, its 95 % interval over
        resampled prompts.
    """
    rng = np.random.default_rng(settings.seed)
    classes = [token_classes(prompt) for prompt in prompts]
    rows = []
    for token_class in CLASSES:
        having = [i for i, of in enumerate(classes) if token_class in of]
        if not having:
            continue
        resampled = rng.integers(len(having), size=(N_RESAMPLED, len(having)))
        total = np.array([found[i].clean - found[i].corrupted for i in having])
        for kind in settings.restored:
            # (prompt, layer): means over the tokens of the class
            indirect = np.array(
                [
                    found[i].restored[kind][:, np.array(classes[i]) == token_class]
                    .mean(1) - found[i].corrupted
                    for i in having
                ]
            )  # fmt: skip
            for place, layer in enumerate(layers):
                values = indirect[:, place]
                rows.append(
                    {
                        "restored": kind,
                        "tokens": token_class,
                        "layer": layer,
                        "n_prompts": len(having),
                        "indirect": float(values.mean()),
                        "normalised": _share(values, total),
                        "interval": _interval(values, total, resampled),
                    }
                )
    return rows


def _share(values: np.ndarray, total: np.ndarray) -> float | None:
    known = total.mean() >= LEAST_EFFECT
    return float(values.sum() / total.sum()) if known else None


def _interval(
    values: np.ndarray, total: np.ndarray, resampled: np.ndarray
) -> list[float] | None:
    wholes = total[resampled].sum(1)
    if not (wholes >= LEAST_EFFECT * len(total)).all():
        return None
    shares = values[resampled].sum(1) / wholes
    return [float(end) for end in np.percentile(shares, [2.5, 97.5])]
