"""Every file of a run is what its JSON says: damage is refused, or repaired."""

import json
import logging
from pathlib import Path

import pytest

from circuitcut.scripts import evaluate, train_mask
from circuitcut.storage.atomic import read_tensors, write_tensors
from circuitcut.storage.errors import UserError
from circuitcut.training.config import parse_config

MASK = ["--n_steps", "10", "--lr", "0.3", "--n_ablated", "150", "--n_random", "0"]
MASK += ["--attribution", "none", "--checkpoint_every", "5"]


def trained(flags: list[str]) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


def evaluated(mask: Path, *flags: str) -> Path:
    where = ["--mask", str(mask), "--device", "cpu", *flags]
    where += ["--run_dir", str(mask.parent)]
    return evaluate.main(parse_config(evaluate.EvaluateConfig, where))


def test_a_ranking_that_is_damaged_or_of_another_run_is_refused(fast: list[str]):
    run = trained([*fast, *MASK])
    other = trained([*fast, *MASK, "--seed", "1"])
    sizes = ["--sizes", "20"]
    evaluated(run, *sizes)
    file, header = run / "ranking.safetensors", run / "ranking.json"
    whole = file.read_bytes(), header.read_bytes()
    tensors = {name: -scores for name, scores in read_tensors(file).items()}
    write_tensors(file, tensors)
    with pytest.raises(
        UserError, match=r"not the file that ranking\.json .* describes"
    ):
        evaluated(run, *sizes)
    for name in ("ranking.safetensors", "ranking.json"):
        (run / name).write_bytes((other / name).read_bytes())
    with pytest.raises(UserError, match="is the ranking of another mask"):
        evaluated(run, *sizes)
    file.write_bytes(whole[0])
    header.unlink()  # as older versions wrote it
    evaluated(run, *sizes)


def test_the_mask_of_another_run_is_refused(fast: list[str]):
    run = trained([*fast, *MASK])
    other = trained([*fast, *MASK, "--seed", "1"])
    content = (other / "mask.safetensors").read_bytes()
    (run / "mask.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"not the file that mask\.json .* describes"):
        evaluated(run)


@pytest.mark.parametrize("damage", ["flipped bit", "lost file", "broken record"])
def test_a_damaged_base_model_is_trained_again_and_said_so(
    damage: str,
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    flags = [*fast, *MASK, "--base_steps", "20"]
    run = trained(flags)
    (folder,) = [p for p in (tmp_path / "cache" / "base").iterdir() if p.is_dir()]
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    match damage:
        case "flipped bit":
            weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "lost file":
            weights.unlink()
        case "broken record":
            (folder / "base.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        again = trained(flags)
    assert f"the base model in {folder} is damaged" in caplog.text
    assert weights.read_bytes() == whole
    masks = [(r / "mask.safetensors").read_bytes() for r in (run, again)]
    assert masks[0] == masks[1]


def test_a_cached_base_model_of_an_older_version_is_used_and_said_to_be_unchecked(
    fast: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("CIRCUITCUT_CACHE", str(tmp_path / "cache"))
    flags = [*fast, *MASK, "--base_steps", "20"]
    trained(flags)
    (record,) = (tmp_path / "cache" / "base").glob("*/base.json")
    entries = json.loads(record.read_text())
    del entries["files"]
    record.write_text(json.dumps(entries))
    before = record.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        trained(flags)
    assert "has no checksums: the base model is not checked" in caplog.text
    assert record.stat().st_mtime_ns == before
