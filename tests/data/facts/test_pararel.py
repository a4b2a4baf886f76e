"""ParaRel's patterns and tuples give its published counts; wrong lines are named."""

import os
from pathlib import Path

import pytest

from circuitcut.data.facts.pararel import is_pararel, read_pararel
from circuitcut.data.facts.records import Fact, relations_of
from circuitcut.storage.errors import UserError

PATTERNS = '{"pattern": "The capital of [X] is [Y] ."}\n{"pattern": "[Y] rules [X]"}\n'
TUPLES = '{"sub_label": "France", "obj_label": "Paris"}\n'


def folder_of(folder: Path, patterns: str = PATTERNS, tuples: str = TUPLES) -> Path:
    for name, text in (("patterns", patterns), ("tuples", tuples)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "P36.jsonl").write_text(text)
    return folder


def test_every_tuple_gets_every_pattern(tmp_path: Path):
    folder = folder_of(tmp_path)
    assert is_pararel(folder)
    assert not is_pararel(folder / "tuples")
    prompts = ("The capital of France is [MASK] .", "[MASK] rules France")
    where = f"{folder}/tuples/P36.jsonl, line 1"
    expected = Fact("France", "P36", "Paris", prompts, where=where)
    assert read_pararel(folder) == [expected]
    assert read_pararel(folder, more_patterns_than=2) == []


@pytest.mark.skipif("CIRCUITCUT_DATA" not in os.environ, reason="CIRCUITCUT_DATA unset")
@pytest.mark.parametrize(
    ("more_than", "counts"), [(0, (39, 27_610, 224_674)), (3, (34, 23_749, 215_929))]
)
def test_the_published_counts_come_out(more_than: int, counts: tuple[int, int, int]):
    folder = Path(os.environ["CIRCUITCUT_DATA"]) / "pararel"
    facts = read_pararel(folder, more_patterns_than=more_than)
    n_prompts = sum(len(fact.prompts) for fact in facts)
    assert (len(relations_of(facts)), len(facts), n_prompts) == counts


@pytest.mark.parametrize(
    ("patterns", "tuples", "message"),
    [
        ('{"pattern": "of [X] is"}', TUPLES, "patterns/P36.jsonl, line 1: .*one .Y."),
        ('\n{"pattern": "[Y] is"}', TUPLES, "patterns/P36.jsonl, line 2: .*one .X."),
        ('{"lemma": "a"}', TUPLES, "line 1: pattern must be text, got null"),
        (PATTERNS, '{"sub_label": "France"}', "tuples/P36.jsonl, line 1: obj_label"),
        (PATTERNS, TUPLES + "{", "tuples/P36.jsonl, line 2: malformed JSON"),
        ('{"pattern": "[X][Y]"}', '{"sub_label": " ", "obj_label": "a"}', "sub_label"),
    ],
)
def test_wrong_lines_are_named(
    patterns: str, tuples: str, message: str, tmp_path: Path
):
    with pytest.raises(UserError, match=message):
        read_pararel(folder_of(tmp_path, patterns, tuples))


def test_missing_tuples_are_named(tmp_path: Path):
    (folder_of(tmp_path) / "tuples" / "P36.jsonl").unlink()
    with pytest.raises(UserError, match=r"tuples/P36\.jsonl"):
        read_pararel(tmp_path)
