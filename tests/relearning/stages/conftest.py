"""A small encoder and decoder, and two dozen generated sentences a split."""

from dataclasses import replace

import pytest

from circuitcut.data.ner.corpus import NerCorpus
from circuitcut.data.ner.generated import generate_ner
from circuitcut.models.builtin import BuiltinSizes, build_builtin
from circuitcut.models.loaded import LoadedModel
from circuitcut.tasks.base import TaskOptions
from circuitcut.tasks.locations import LocationsTask

N_SENTENCES = 24


@pytest.fixture(scope="session")
def corpus() -> NerCorpus:
    whole = generate_ner(0)
    splits = {name: part[:N_SENTENCES] for name, part in whole.splits.items()}
    return replace(whole, splits=splits)


def built(corpus: NerCorpus, name: str) -> LoadedModel:
    return build_builtin(
        name,
        head="token_classification",
        labels=corpus.labels,
        texts=corpus.texts(),
        sizes=BuiltinSizes(vocab_size=200, n_layers=2, d_model=16, n_heads=2),
        seed=0,
    )


@pytest.fixture(scope="session")
def encoder(corpus: NerCorpus) -> LoadedModel:
    return built(corpus, "tiny-encoder")


@pytest.fixture(scope="session")
def decoder(corpus: NerCorpus) -> LoadedModel:
    return built(corpus, "tiny-decoder")


@pytest.fixture(scope="session")
def task(corpus: NerCorpus, encoder: LoadedModel) -> LocationsTask:
    return LocationsTask(corpus, encoder.tokenizer, TaskOptions())
