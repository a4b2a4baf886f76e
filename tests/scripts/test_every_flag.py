"""Every flag of every script, with values that no flag should take: by its type.

What the parser takes is finite, in its range and can be written as JSON; all else is
one line that names the flag, and exit code 2. No model is loaded.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from circuitcut.scripts.command_line import VERBS
from circuitcut.storage.flag_fields import FREE_TEXT
from circuitcut.storage.flag_ranges import WITHIN, Range
from circuitcut.tasks.defaults import BaseRecipe
from circuitcut.training import config
from circuitcut.training.config import parse_config

NOT_UTF8 = os.fsdecode(b"\xff")
_BIG = [str(2**63), str(2**64), str(10**30), "9" * 5000]
_NOT_FINITE = ["nan", "inf", "-inf", "1e999"]
WRONG: dict[type, list[str]] = {
    int: [*_BIG, "-1", "0", "1.5", "x", "", "nan", "1e3"],
    float: [*_NOT_FINITE, "-1", "0", "1", "7", "1e300", "1e-320", "x", ""],
    str: ["", " ", NOT_UTF8, "a\0b", "x" * 300, "x" * 10_000, "a/" * 3000],
    Path: ["", NOT_UTF8, "a\0b", "x" * 300, "x" * 10_000],
    bool: ["", "2", "x", NOT_UTF8],
}
NEEDED = {"stability": ["--masks", "one", "two"]}
"""Flags that a script cannot do without."""


def flags_of(verb: str) -> Iterator[tuple[Field[Any], type, bool]]:
    """The flags of a script, the type of a value, and whether it is a list."""
    hints = get_type_hints(config_of(verb))
    for field in fields(config_of(verb)):
        hint = hints[field.name]
        given = [h for h in get_args(hint) if h is not NoneType]
        if len(given) < len(get_args(hint)):  # it may be None
            hint = given[0]
        is_list = get_origin(hint) is list
        kind = get_args(hint)[0] if is_list else hint
        yield field, kind if kind in WRONG else str, is_list


def config_of(verb: str) -> Any:
    module, name = VERBS[verb]
    return getattr(import_module(module), name)


def first_seen() -> dict[str, set[str]]:
    """Every flag that several scripts share is tried with the first of them alone."""
    seen: set[tuple[str, Any, str]] = set()
    new: dict[str, set[str]] = {}
    for verb in VERBS:
        new[verb] = set()
        for field, kind, is_list in flags_of(verb):
            key = (field.name, kind, f"{is_list} {field.metadata.get(WITHIN)}")
            if key not in seen:
                new[verb].add(field.name)
            seen.add(key)
    return new


NEW = first_seen()


@pytest.fixture(autouse=True)
def _parsers_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred flags take a while to declare."""
    monkeypatch.setattr(config, "_Parser", cache(config._Parser))


def answer(
    verb: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[Any, str]:
    """The parsed flags, or None and the message of a refusal."""
    needed = NEEDED.get(verb, [])
    if needed and needed[0] == flags[0]:
        needed = []
    try:
        return parse_config(config_of(verb), [*needed, *flags]), ""
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2, flags
    return None, capsys.readouterr().err


def check(
    verb: str,
    field: Field[Any],
    values: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The rule: either sane values, or one line that names the flag."""
    words = [f"--{field.name}", *values]
    parsed, message = answer(verb, words, capsys)
    case = f"{verb} {str(words)[:100]}: {message[:300]}"
    if parsed is None:
        assert len(message.strip().splitlines()) == 1, case
        assert field.name in message, case
        assert len(message) < 1000, case
        assert "Traceback" not in message, case
        return
    value = getattr(parsed, field.name)
    within = field.metadata.get(WITHIN)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int | float) and not isinstance(item, bool):
            assert math.isfinite(item), case
            assert within.has(item), case
        elif isinstance(item, str | Path):
            text = str(item)
            assert "\0" not in text, case
            text.encode()  # JSON and the terminal can show it
            assert field.metadata.get(FREE_TEXT) or 0 < len(text) <= 4096, case


@pytest.mark.parametrize("verb", VERBS)
def test_a_value_is_sane_or_refused_in_one_line_that_names_the_flag(
    verb: str, capsys: pytest.CaptureFixture[str]
):
    for field, kind, is_list in flags_of(verb):
        if field.name not in NEW[verb]:
            continue
        for value in WRONG[kind]:
            check(verb, field, [value], capsys)
        if is_list:
            check(verb, field, [], capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_a_list_repeats_no_value_and_keeps_one_where_its_default_has_one(
    verb: str, capsys: pytest.CaptureFixture[str]
):
    for field, _, is_list in flags_of(verb):
        if not is_list:
            continue
        default = field.default_factory() if callable(field.default_factory) else []
        if default:
            parsed, message = answer(verb, [f"--{field.name}"], capsys)
            assert parsed is None, field.name
            assert f"--{field.name} needs at least one value" in message
        value = str((default or ["1"])[0])
        parsed, message = answer(verb, [f"--{field.name}", value, value], capsys)
        assert parsed is None, field.name
        assert field.name in message


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_a_number_says_which_numbers_it_takes(verb: str):
    for field, kind, _ in flags_of(verb):
        if kind in (int, float):
            within = field.metadata[WITHIN]
            assert isinstance(within, Range), field.name
            assert not within.has(math.nan)
            assert not within.has(math.inf)
            default = field.default if field.default is not MISSING else None
            assert default is None or within.has(default), field.name


@pytest.mark.parametrize("field", fields(BaseRecipe), ids=lambda field: field.name)
def test_every_number_of_a_base_recipe_has_a_range(
    field: Field[Any], capsys: pytest.CaptureFixture[str]
):
    hint = get_type_hints(BaseRecipe)[field.name]
    kind = next((k for k in (hint, *get_args(hint)) if k in (int, float)), str)
    for value in WRONG[kind]:
        flags = ["--base_recipe", f"{field.name}={value}"]
        parsed, message = answer("train-base", flags, capsys)
        if parsed is None:
            assert "base_recipe" in message
            assert len(message.strip().splitlines()) == 1
        else:
            assert field.metadata[WITHIN].has(float(value)), (field.name, value)


@pytest.mark.parametrize(
    ("verb", "flags", "said"),
    [
        ("train-mask", ["--seed", str(2**64)], "--seed must be a whole number"),
        ("train-mask", ["--seed", "-1"], "from 0 to 9,223,372,036,854,775,807, got -1"),
        ("train-mask", ["--lr", "1e300"], "--lr must be a number above 0 and at most"),
        ("train-mask", ["--n_random", "-1"], "--n_random must be a whole number"),
        (
            "train-mask",
            ["--average", "3"],
            "--average must be a number from 0 to 1, got 3.0",
        ),
        (
            "train-mask",
            ["--concept_target", "nan"],
            "a number from 0 to 1, got nan",
        ),
        ("train-mask", ["--concept_target", "7"], "from 0 to 1, got 7.0"),
        ("train-mask", ["--retain_cost", "-3"], "--retain_cost must be a number"),
        ("train-mask", ["--target_ablated", "nan"], "--target_ablated must be"),
        (
            "train-mask",
            ["--gate", "topk", "--keep_prob", "2"],
            "--keep_prob must be a number above 0 and below 1, got 2.0",
        ),
        ("relearn", ["--seeds", "0", "0"], "--seeds must name every value once"),
        ("relearn", ["--n_steps", "4", "--warmup", "4"], "--warmup must be below"),
        ("relearn", ["--limits", "²"], "--limits must be numbers or all"),
        ("relearn", ["--limits", str(10**30)], "--limits must be a whole number"),
        ("relearn", ["--trained", "("], "regular expression"),
        ("relearn", ["--trained", "layers:3-1"], "layers:FIRST-LAST"),
        ("relearn", ["--trained", f"lora:{10**30}"], "the rank of"),
        ("train-base", ["--device", "abacus"], "--device must be cpu, cuda"),
        ("train-base", ["--device", "cuda:x"], "--device must be cpu, cuda"),
        ("train-base", ["--data", "hub:"], "--data must be hub:owner/name, got 'hub:'"),
        ("train-base", ["--data", "hub:a/b/c"], "--data must be hub:owner/name"),
        ("train-base", ["--retain_data", "hub:/"], "--retain_data must be hub:"),
        ("train-base", ["--base_recipe", "lr=1", "lr=2"], "lr once"),
        ("report", ["--out", "a\0b"], "--out must not hold a NUL"),
        ("report", ["--runs", NOT_UTF8], "--runs must be UTF-8 text"),
    ],
)
def test_the_message_has_the_flag_the_rule_and_the_value(
    verb: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    parsed, message = answer(verb, flags, capsys)
    assert parsed is None
    assert said in message
