"""Hidden states of words, level by level: sub-words averaged, one batch at a time.

Level 0 is the embedding level and level l the output of block l. A word's vector is the
mean of those of its pieces, as in Lo et al. (2024), https://arxiv.org/abs/2401.01814.
Where a text is not given in words, every token that is neither padding nor special is
one. Departure: the word at the first position of a causal model, an attention sink with
huge activations, is left out (`models.spared`). Nothing is collected: a batch's states
are gone when the next one comes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitcut.masks.ablation import record_values
from circuitcut.models.architectures import sites_of
from circuitcut.models.sites import Site
from circuitcut.models.spared import spared_positions
from circuitcut.storage.errors import UserError
from circuitcut.storage.modes import evaluating
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import Batch, Split, Task, to_device

SIZE = 32
"""Examples in one forward pass; changes no result but by rounding."""


@dataclass(frozen=True)
class WordSource:
    """The words that are read: those of a split, without spared positions."""

    task: Task
    split: Split
    special_ids: tuple[int, ...] = ()
    """Words with a piece at a position with these `input_ids`, or at `FIRST_POSITION`,
    are left out: no mask acts there."""

    def batches(self) -> list[Batch]:
        """All batches of the split, on the CPU."""
        return list(self.task.evaluation_batches(self.split, size=SIZE))


@dataclass(frozen=True)
class Words:
    """The labelled words of a batch, in the order of the text."""

    labels: Int[Tensor, "word"]
    """Class of the word; 1 for the concept and 0 for others where a task has none."""
    is_concept: Bool[Tensor, "word"]
    examples: Int[Tensor, "word"]
    """Number of the example in its split, -1 where the task does not tell."""
    numbers: Int[Tensor, "word"]
    """Number of the word in its example."""
    tokens: Int[Tensor, "word"]
    """Token id of the word's first piece."""


@dataclass(frozen=True)
class _Pieces:
    """Which pieces of a batch are of which labelled word."""

    inside: Bool[Tensor, "batch seq"]
    word_of: Int[Tensor, "piece"]
    """Of the pieces at which `inside` is True."""
    words: Words


def hidden_sites(model: nn.Module) -> tuple[Site, ...]:
    """One site a level, the embedding level first.

    Raises:
        UserError: When the architecture is not in the table, or has no embedding level.
    """
    sites = sites_of(model, ["hidden"])
    if sites[0].layer != -1:
        raise UserError(
            f"{type(model).__name__} has no module whose output is the sum of its "
            "embeddings, so it has no embedding level; words need another text model"
        )
    return sites


def level_of(site: Site) -> int:
    """0 for the embedding level, l for the output of block l (counted from 1)."""
    return site.layer + 1


def words_of(source: WordSource) -> Iterator[Words]:
    """The labelled words of every batch; no model runs."""
    for batch in source.batches():
        yield _pieces(source, batch).words


def word_states(
    source: WordSource,
    model: nn.Module,
    sites: Sequence[Site],
    *,
    label: str | None = None,
) -> Iterator[tuple[Words, Float[Tensor, "word unit"]]]:
    """Labelled words and their vectors: the units of all sites side by side.

    Whatever mask is on stays on. The model runs without its head, in evaluation mode,
    once a batch.

    Args:
        label: Of the progress lines; None shows none.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in shown(source.batches(), label):
            moved = to_device(batch, device)
            pieces = _pieces(source, moved)
            recorded = dict(
                record_values(model, sites, source.task.inputs(moved)).values
            )
            states = torch.empty(
                len(pieces.words.labels), sum(s.n_units for s in sites), device=device
            )
            for columns, site in zip(
                states.split([s.n_units for s in sites], dim=1), sites, strict=True
            ):
                columns.copy_(_pooled(recorded.pop(site.name), pieces))
            yield pieces.words, states
            del states


def pooled_embeddings(
    source: WordSource, model: nn.Module
) -> Iterator[tuple[Words, Float[Tensor, "word d_model"]]]:
    """Labelled words and their rows of the model's table of input embeddings."""
    base: nn.Module = getattr(model, "base_model", model)
    table = base.get_input_embeddings()  # type: ignore[operator]
    for batch in source.batches():
        moved = to_device(batch, table.weight.device)
        pieces = _pieces(source, moved)
        with torch.no_grad():
            yield pieces.words, _pooled(table(moved["input_ids"]), pieces)


def _pieces(source: WordSource, batch: Batch) -> _Pieces:
    ids, real = batch["input_ids"], batch["real"]
    n_rows, seq = ids.shape
    concept_piece = batch.get("word_concept", batch["concept"])
    labelled = batch.get("word_piece", batch["concept"] | batch["retain"])
    places = torch.arange(seq, device=ids.device).expand_as(ids)
    word = batch["word"] if "word" in batch else torch.where(real, places, -1)
    rows = torch.arange(n_rows, device=ids.device)[:, None]
    key = torch.where(word >= 0, rows * seq + word, -1)
    spared = spared_positions(ids, batch.get("attention_mask"), source.special_ids)
    kinds = key[labelled & (word >= 0)].unique()  # sorted: in the order of the text
    kinds = kinds[~torch.isin(kinds, key[spared])]
    inside = (key >= 0) & torch.isin(key, kinds)
    word_of = torch.searchsorted(kinds, key[inside])
    at = (labelled & inside).nonzero()  # one labelled piece a word
    order = torch.searchsorted(kinds, key[labelled & inside]).argsort(stable=True)
    row, place = at[order].unbind(1)
    first = torch.full_like(kinds, seq).scatter_reduce(
        0, word_of, places[inside], "amin"
    )
    concept = concept_piece[row, place]
    is_tagged = source.task.head == "token_classification"
    examples = batch.get("example", torch.full_like(rows.squeeze(1), -1))
    words = Words(
        labels=batch["targets"][row, place] if is_tagged else concept.long(),
        is_concept=concept,
        examples=examples[row],
        numbers=word[row, place],
        tokens=ids[row, first],
    )
    return _Pieces(inside, word_of, words)


def _pooled(states: Tensor, pieces: _Pieces) -> Float[Tensor, "word width"]:
    """Mean over the pieces of each word: (batch, seq, width) -> (word, width)."""
    n_words = len(pieces.words.labels)
    values = states[pieces.inside].float()  # (piece, width)
    counts = values.new_zeros(n_words).index_add_(
        0, pieces.word_of, values.new_ones(len(values))
    )
    sums = values.new_zeros(n_words, values.shape[1])
    return sums.index_add_(0, pieces.word_of, values) / counts.unsqueeze(1)
