"""Tagged words by split, as the options of a task name them."""

from pathlib import Path

from circuitcut.data.hub import HUB_PREFIX, load_hub
from circuitcut.data.ner.corpus import NerCorpus, split_corpus
from circuitcut.data.ner.files import read_tagged
from circuitcut.data.ner.generated import generate_ner
from circuitcut.data.ner.hub import tagged_from_hub
from circuitcut.data.ner.word_lists import marked, read_word_list
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import TaskOptions


def tagged_corpus(options: TaskOptions) -> NerCorpus:
    """Built-in sentences, files of tagged text or a hub data set (docs/formats.md).

    With `concept_words` the concept is the words of that list, an entity type that is
    named after the file.

    Raises:
        UserError: When the data are missing or malformed, or do not have the concept.
    """
    concept, listed = options.concept, options.concept_words
    named = None if listed is None else listed.name.split(".")[0] or "listed"
    if listed is not None and concept not in (None, named):  # a run keeps both
        raise UserError(
            f"--concept {concept} and --concept_words {listed} both name the concept; "
            "give one of them"
        )
    if options.data is None:
        return generate_ner(options.split_seed, concept=concept)
    entries = None if listed is None else read_word_list(listed)
    if options.data.startswith(HUB_PREFIX):
        parts = load_hub(options.data, options.hub_config, options.hub_revision)
        tagged = tagged_from_hub(parts, options.text_column, options.label_column)
    else:
        tagged = read_tagged(
            Path(options.data),
            options.labels_file,
            options.data_format,
            options.text_column,
            options.label_column,
        )
    if entries is not None and named is not None:
        concept = named
        tagged = marked(tagged, entries, named)
    return split_corpus(
        tagged.sentences,
        tagged.groups,
        tagged.sources,
        concept=concept,
        seed=options.split_seed,
    )
