"""scripts/trace.py: subjects in tokens, flags, and a run of the built-in facts."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuitcut.data.facts.records import Fact
from circuitcut.experiments.circuits.traced_facts import subject_tokens
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.scripts import report, trace
from circuitcut.storage.errors import UserError
from circuitcut.tasks.facts.asked import asked_facts
from circuitcut.tasks.rows.prompts import Reader
from circuitcut.training.config import parse_config

TEXTS = ["The city of New Orleans lies in the south of Louisiana and Lake Erie"]


@pytest.mark.parametrize("masked", [False, True])
def test_the_subject_is_found_in_tokens(masked: bool):
    tokenizer = train_tokenizer(
        TEXTS, "word", is_decoder=not masked, vocab_size=64, max_length=32
    )
    facts = [
        Fact("New Orleans", "in", "Lake Erie", ("The city of New Orleans lies in",)),
        Fact("New Orleans", "in", "Louisiana", ("In [MASK] lies New Orleans",)),
        Fact("Erie", "in", "Louisiana", ("The city of New Orleans lies in",)),
    ]
    asked = asked_facts(facts, tokenizer, masked=masked)
    reader = Reader(tokenizer, masked, 32)
    found = {}
    for prompt in asked.prompts:
        span = subject_tokens(facts[prompt.fact], prompt, reader)
        words = span and tokenizer.convert_ids_to_tokens(prompt.input_ids)[slice(*span)]
        found[prompt.fact] = words
    assert [w.strip("Ġ▁") for w in found[0]] == ["New", "Orleans"]
    assert found[2] is None
    if masked:  # the subject is behind the mask
        assert [w.strip("Ġ▁") for w in found[1]] == ["New", "Orleans"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "ioi"], "--task must be facts, got 'ioi'"),
        (["--restored", "heads"], "--restored must name some of hidden, mlp"),
        (["--n_noise", "0"], "--n_noise"),
        (["--noise", "0"], "--noise must be a number from 0.001"),
    ],
)
def test_wrong_flags_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        parse_config(trace.TraceConfig, flags)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_built_in_facts_are_traced(tmp_path: Path):
    flags = ["--run_dir", str(tmp_path), "--n_traced", "4", "--n_noise", "2"]
    flags += ["--base_steps", "120", "--n_facts", "12", "--device", "cpu"]
    run = trace.main(parse_config(trace.TraceConfig, flags))
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    assert len(found["prompts"]) == 4
    assert found["tracing"]["clean"] > found["tracing"]["corrupted"] > 0
    last = [
        row
        for row in found["effects"]
        if (row["restored"], row["tokens"], row["layer"]) == ("hidden", "last", 1)
    ]
    # behind the last block the last token is all that the logits read
    assert last[0]["normalised"] == pytest.approx(1, abs=1e-5)
    assert (run / "figures" / "trace_map.png").exists()
    page = report.main(report.ReportConfig(runs=[run]))
    assert "Largest indirect effect" in page.read_text()
    with pytest.raises(UserError, match="--layers must be 0 to 1, got"):
        trace.main(parse_config(trace.TraceConfig, [*flags, "--layers", "7"]))
