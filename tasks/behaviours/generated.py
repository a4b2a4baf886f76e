"""What generated tasks of the literature share: no data of the user but texts."""

from circuitcut.data.prompts.records import PromptsCorpus, with_further_texts
from circuitcut.data.text.files import read_retained
from circuitcut.data.text.splits import split_retained
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import TaskOptions


def check_no_data(name: str, options: TaskOptions) -> None:
    """Refuse `--data` of a task whose prompts are generated.

    Raises:
        UserError: When it is given.
    """
    if options.data is not None:
        raise UserError(
            f"task {name} generates its prompts, got --data {options.data}; leave it "
            "out, or ask your own prompts with --task prompts"
        )


def with_retained(corpus: PromptsCorpus, options: TaskOptions) -> PromptsCorpus:
    """The corpus with the texts of `--retain_data`, if it is given."""
    if options.retain_data is None:
        return corpus
    texts = read_retained(options.retain_data, options.text_column)
    return with_further_texts(corpus, split_retained(texts, seed=options.split_seed))
