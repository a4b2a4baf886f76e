"""Prefix, begin-of-text token and chat template: before the text, never a target."""

from typing import Any

import numpy as np
import pytest
import torch

from circuitcut.experiments.flags import TaskConfig
from circuitcut.experiments.load import dtype_of, load, task_of
from circuitcut.models.spared import FIRST_POSITION
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import NO_TARGET, TaskOptions
from circuitcut.tasks.language_rows import prefix_ids, tokenize

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """The untrained decoder of `ioi` with its tokenizer."""
    return load(TaskConfig(task="ioi", device="cpu"))


def _tokenizer(loaded: Any) -> Any:
    return loaded.loaded.tokenizer


def test_plain_text_is_the_default(loaded: Any):
    assert prefix_ids(_tokenizer(loaded), TaskOptions()) == ()


def test_the_begin_token_and_a_text_come_first(loaded: Any):
    tokenizer = _tokenizer(loaded)
    words = tokenizer.encode("The garden", add_special_tokens=False)
    options = TaskOptions(prefix="The garden", bos=True)
    assert prefix_ids(tokenizer, options) == (tokenizer.bos_token_id, *words)
    (row,) = tokenize(tokenizer, ["Ann and Bob"], max_tokens=32, prefix=[7, 8])
    plain = tokenizer.encode("Ann and Bob", add_special_tokens=False)
    assert row.ids == [7, 8, *plain]
    assert row.special == [True, True, *[False] * len(plain)]
    assert row.spans[2][0] == 0  # characters are those of the text


def test_a_chat_template_makes_the_text_an_answer(loaded: Any):
    tokenizer = _tokenizer(loaded)
    options = TaskOptions(chat=True, prefix="The garden")
    with pytest.raises(
        UserError, match="--chat needs a tokenizer with a chat template"
    ):
        prefix_ids(tokenizer, options)
    tokenizer.chat_template = TEMPLATE
    try:
        ids = prefix_ids(tokenizer, options)
    finally:
        tokenizer.chat_template = None
    text = "<s>The garden</s><s>"
    assert list(ids) == tokenizer.encode(text, add_special_tokens=False)


def test_a_prefix_without_room_for_a_text_is_refused(loaded: Any):
    with pytest.raises(UserError, match="--prefix has 9 tokens, which leaves no room"):
        tokenize(_tokenizer(loaded), ["Ann"], max_tokens=12, prefix=[7] * 9)


@pytest.mark.parametrize("task_name", ["ioi", "toxicity", "prompts"])
def test_a_prefix_is_in_every_input_and_is_never_counted(task_name: str):
    plain = load(TaskConfig(task=task_name, model="tiny-decoder", device="cpu"))
    config = TaskConfig(
        task=task_name, model="tiny-decoder", device="cpu", bos=True, prefix="the the"
    )
    task = task_of(config, plain.corpus, plain.loaded)
    n_plain = task_of(plain.config, plain.corpus, plain.loaded)
    with_prefix = task.batch("mask", 0, size=8, seed=0)
    without = n_plain.batch("mask", 0, size=8, seed=0)
    n = len(prefix_ids(plain.loaded.tokenizer, config.task_options("last")))
    assert n == 3
    first = with_prefix["input_ids"][:, :n]
    assert (first == first[0]).all()
    assert not with_prefix["real"][:, :n].any()
    assert not with_prefix["concept"][:, : n - 1].any()
    assert not with_prefix["retain"][:, : n - 1].any()
    assert (with_prefix["targets"][:, : n - 1] == NO_TARGET).all()
    old = int((without["input_ids"] == plain.loaded.tokenizer.bos_token_id).any())
    longer = with_prefix["input_ids"].shape[1] - without["input_ids"].shape[1]
    assert longer in (n, n - old)
    assert np.array_equal(
        with_prefix["concept"].sum(1).numpy(), without["concept"].sum(1).numpy()
    )


def test_text_flags_belong_to_language_models_and_dtypes_to_loaded_ones():
    with pytest.raises(UserError, match="--bos belongs to --task ioi or"):
        load(TaskConfig(task="locations", bos=True))
    with pytest.raises(UserError, match="--dtype bfloat16 is for loaded models"):
        load(TaskConfig(task="ioi", dtype="bfloat16"))
    assert dtype_of(TaskConfig(dtype="bfloat16")) == torch.bfloat16


def test_the_sink_of_a_decoder_is_spared(loaded: Any):
    assert FIRST_POSITION in loaded.loaded.special_ids
