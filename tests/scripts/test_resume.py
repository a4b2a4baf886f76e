"""A run is what it says: it goes on with its own inputs alone, and can be repeated."""

import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitcut.data.digits.digits import DigitImages
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.scripts import evaluate, relearn, report, train_mask
from circuitcut.storage.atomic import read_json, write_json
from circuitcut.storage.errors import UserError
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.tasks.mnist import MnistTask
from circuitcut.tasks.settings.registry import DEFAULTS
from circuitcut.training.config import parse_config
from circuitcut.training.tracking import Tracker
from tests.scripts.conftest import FAST

MASK = ["--n_steps", "12", "--lr", "0.3", "--n_ablated", "150", "--n_random", "0"]
MASK += ["--attribution", "none", "--checkpoint_every", "4"]
RELEARN = ["--n_steps", "6", "--limits", "4", "--seeds", "0", "--n_evaluations", "2"]
RELEARN += ["--no_probe", "--no_redistribute", "--device", "cpu"]


def trained(flags: list[str]) -> Path:
    return train_mask.main(parse_config(train_mask.TrainMaskConfig, flags))


def relearned(flags: list[str]) -> Path:
    return relearn.main(parse_config(relearn.RelearnConfig, flags))


def evaluated(flags: list[str]) -> Path:
    return evaluate.main(parse_config(evaluate.EvaluateConfig, flags))


def stopped(monkeypatch: pytest.MonkeyPatch, at: int, start: Any, *flags: str) -> None:
    """Begin a run that ends with an error once it has logged so many numbers."""
    log, n_logged = Tracker.scalars, 0

    def scalars(self: Tracker, step: int, values: dict[str, float]) -> None:
        nonlocal n_logged
        if n_logged == at:
            raise RuntimeError("the machine went away")
        n_logged += 1
        log(self, step, values)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "scalars", scalars)
        with pytest.raises(RuntimeError, match="went away"):
            start(list(flags))


@pytest.fixture(scope="module")
def made(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: `finished`, and `unfinished` after ten of twelve steps."""
    parent = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITCUT_CACHE", str(cache))
        flags = [*FAST, *MASK, "--run_dir", str(parent), "--name"]
        trained([*flags, "finished"])
        stopped(patch, 10, trained, *flags, "unfinished")
    return parent


@pytest.fixture
def unfinished(made: Path, tmp_path: Path) -> Path:
    """A copy of the run whose last checkpoint is that of eight steps."""
    return shutil.copytree(made / "unfinished", tmp_path / "runs" / "unfinished")


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(made / "finished", tmp_path / "runs" / "finished")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--base_seed", "7"], "base_seed (0 before, 7 now)"),
        (["--concept", "5"], "concept (3 before, 5 now)"),
        (["--ablation", "zero"], "ablation (mean before, zero now)"),
        (["--direction", "isolate", "--concept_objective", "kl"], "direction (break"),
        (["--batch_size", "3"], "batch_size (128 before, 3 now)"),
        (["--n_steps", "13"], "n_steps (12 before, 13 now)"),
        (["--n_ablated", "5"], "n_ablated (150 before, 5 now)"),
        (["--seed", "1", "--lr", "1"], "lr (0.3 before, 1.0 now), seed (0 before"),
        (["--task", "locations"], "task (mnist before, locations now)"),
    ],
)
def test_other_flags_are_refused_before_any_work(
    flags: list[str], said: str, unfinished: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(*_: Any) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr(MnistTask, "read", read)
    with pytest.raises(UserError, match="its own flags, got others") as caught:
        trained(["--resume", str(unfinished), *flags])
    assert said in str(caught.value)


def test_the_same_flags_and_those_of_the_place_are_accepted(unfinished: Path):
    flags = ["--base_seed", "0", "--ablation", "mean", "--eval_batch", "32"]
    trained(["--resume", str(unfinished), *flags])
    entries = RunDirectory.open(unfinished).metrics()
    assert [entry["step"] for entry in entries] == list(range(12))
    assert not list(unfinished.rglob(".*"))


def test_data_and_weights_that_changed_since_are_refused(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
):
    config = read_json(unfinished / "config.json")
    for key, said in (("data", "the data"), ("weights", "the base weights")):
        made_with = config["provenance"] | {f"{key}_sha256": "0" * 64}
        write_json(unfinished / "config.json", config | {"provenance": made_with})
        with pytest.raises(UserError, match=rf"changed: {said} \(SHA-256 0000"):
            trained(["--resume", str(unfinished)])
    write_json(unfinished / "config.json", config)
    fingerprint = DigitImages.fingerprint
    monkeypatch.setattr(
        DigitImages, "fingerprint", lambda self: fingerprint(self)[::-1]
    )
    with pytest.raises(UserError, match=r"changed: the data"):
        trained(["--resume", str(unfinished)])


def test_a_changed_base_model_of_never_learned_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = ["--mask", str(finished), "--run_dir", str(finished.parent), *RELEARN]
    flags += ["--conditions", "uncut", "never_learned"]
    stopped(monkeypatch, 3, relearned, *flags)
    (run,) = (path for path in finished.parent.iterdir() if path != finished)
    config = read_json(run / "config.json")
    digest = config["provenance"]["never_learned_sha256"]
    assert digest not in (config["provenance"]["weights_sha256"], None)
    made_with = config["provenance"] | {"never_learned_sha256": "0" * 64}
    write_json(run / "config.json", config | {"provenance": made_with})
    with pytest.raises(UserError, match="changed: the base weights of never_learned"):
        relearned(["--resume", str(run)])
    write_json(run / "config.json", config)
    relearned(["--resume", str(run)])
    assert read_json(run / "results.json")["provenance"] == config["provenance"]


def test_what_a_run_is_made_with_stands_in_all_its_files(unfinished: Path):
    trained(["--resume", str(unfinished)])
    made_with = read_json(unfinished / "config.json")["provenance"]
    assert read_json(unfinished / "results.json")["provenance"] == made_with
    state = read_json(unfinished / "checkpoints" / "step-00000012" / "state.json")
    assert state["state"]["provenance"] == made_with
    of_mask = read_json(unfinished / "mask.json")["provenance"]
    assert (
        of_mask.items()
        >= {k: v for k, v in made_with.items() if k != "settings"}.items()
    )
    assert of_mask["settings"] == made_with["settings"]
    assert set(made_with) == {
        *("settings", "data_sha256", "weights_sha256", "config_hash", "code_version")
    }
    assert None not in made_with["settings"].values()
    assert None not in read_json(unfinished / "config.json").values()
    assert made_with["settings"]["lr_schedule"] == "late"
    assert made_with["settings"]["concept"] == "3"  # the task's own
    assert read_json(unfinished / "config.json")["concept"] == "3"


def test_a_config_repeats_its_run_after_the_defaults_have_changed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    first = finished
    defaults = DEFAULTS["mnist"]
    recipe = defaults.of("mlp").base
    assert recipe is not None
    other = replace(
        defaults,
        units=("neurons",),
        mask={"ablation": "zero", "k_max": 20.0, "batch_size": 9},
        of_model={"mlp": replace(defaults.of("mlp"), base=replace(recipe, d_hidden=7))},
    )
    monkeypatch.setitem(DEFAULTS, "mnist", other)
    monkeypatch.setattr(MnistTask, "defaults", other)
    again = trained(["--config", str(first / "config.json")])
    for name in ("mask.safetensors", "ranking.safetensors", "settings.json"):
        assert (again / name).read_bytes() == (first / name).read_bytes(), name
    anew = trained(["--config", str(first), "--units", "neurons", "--n_ablated", "3"])
    assert read_json(anew / "settings.json")["ablation"] == "zero"


def test_a_second_process_is_refused(unfinished: Path):
    with (unfinished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process works on"):
            trained(["--resume", str(unfinished)])
    trained(["--resume", str(unfinished)])


@pytest.mark.parametrize("content", [None, "{}", '{"task": "mnist"}'])
def test_a_missing_or_empty_config_is_refused_before_any_model_is_made(
    content: str | None, finished: Path, cache: Path
):
    run = finished
    config = run / "config.json"
    config.unlink() if content is None else config.write_text(content)
    before = set(cache.rglob("*"))
    where = ["--mask", str(run), "--run_dir", str(run.parent)]
    said = "has no config.json" if content is None else "empty or damaged"
    for start in (evaluated, relearned):
        with pytest.raises(UserError, match=said):
            start(where)
    with pytest.raises(UserError, match=r"config\.json"):
        report.main(report.ReportConfig(runs=[run]))
    assert set(cache.rglob("*")) == before


def test_the_mask_of_another_task_is_refused(finished: Path):
    run = finished
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"task": "ioi"})
    made_with = config["provenance"]
    made_with["settings"]["task"] = "ioi"
    write_json(run / "config.json", config | {"task": "ioi", "provenance": made_with})
    where = ["--mask", str(run), "--run_dir", str(run.parent)]
    for start in (evaluated, relearned):
        with pytest.raises(UserError, match=r"task \(ioi before, mnist now\)"):
            start(where)


def test_a_mask_outside_of_a_run_brings_its_flags_along(finished: Path, tmp_path: Path):
    run = finished
    for name in ("mask.json", "mask.safetensors"):
        (tmp_path / "alone").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "alone" / name)
    where = ["--mask", str(tmp_path / "alone"), "--run_dir", str(run.parent)]
    again = evaluated([*where, "--device", "cpu"])
    scores = [
        read_json(path / "results.json")["scores"]["cut"] for path in (run, again)
    ]
    assert scores[0] == scores[1]
    header = read_json(tmp_path / "alone" / "mask.json")
    del header["provenance"]["settings"], header["header_sha256"]
    write_json(tmp_path / "alone" / "mask.json", header)  # of an older version
    with pytest.raises(UserError, match="names the task mnist without its model"):
        evaluated(where)


def test_a_finished_run_without_its_mask_gets_one_message(finished: Path):
    run = finished
    (run / "mask.json").unlink()
    said = r"is finished, but its mask\.json is gone; restore it, or repeat the run"
    where = ["--mask", str(run), "--run_dir", str(run.parent)]
    for start, flags in (
        (evaluated, where),
        (relearned, where),
        (relearned, ["--run_dir", str(run.parent)]),
        (trained, ["--resume", str(run)]),
    ):
        with pytest.raises(UserError, match=said):
            start(flags)


def test_a_report_of_another_mask_is_refused(finished: Path, fast: list[str]):
    run = finished
    other = trained([*fast, *MASK, "--n_ablated", "20"])
    for name in ("mask.json", "mask.safetensors"):
        shutil.copy(other / name, run / name)
    with pytest.raises(UserError, match=r"n_ablated 150 in results\.json, 20 in mask"):
        report.main(report.ReportConfig(runs=[run]))


def test_a_killed_relearning_logs_every_step_once_and_leaves_nothing_behind(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mask, of_run = ["--mask", str(finished)], FrozenMask.load(finished)
    where = ["--run_dir", str(tmp_path / "relearned")]
    stopped(monkeypatch, 9, relearned, *mask, *where, *RELEARN)
    (run,) = (tmp_path / "relearned").iterdir()
    of_run.random_like(1).save(finished)
    with pytest.raises(UserError, match=r"changed: the mask \(SHA-256"):
        relearned(["--resume", str(run)])
    of_run.save(finished)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "uncut-4-seed0/lo')  # torn by a kill
    (run / ".results.json.0123abcd.tmp").write_text("{")
    relearned(["--resume", str(run)])
    logged = [
        (entry["step"], key)
        for entry in RunDirectory.open(run).metrics()
        for key in entry
        if key.endswith("/loss")
    ]
    assert len(logged) == len(set(logged)) == 3 * 6
    assert not list(run.rglob(".*"))
    report.main(report.ReportConfig(runs=[run]))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--limits", "4", "8"], "limits (4 before, 4 8 now)"),
        (["--seeds", "1"], "seeds (0 before, 1 now)"),
        (["--n_steps", "7"], "n_steps (6 before, 7 now)"),
        (["--base_seed", "1"], "base_seed (0 before, 1 now)"),
    ],
)
def test_relearning_goes_on_with_its_own_flags_alone(
    flags: list[str],
    said: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    where = ["--mask", str(finished), "--run_dir", str(tmp_path / "relearned")]
    stopped(monkeypatch, 9, relearned, *where, *RELEARN)
    (run,) = (tmp_path / "relearned").iterdir()
    with pytest.raises(UserError, match="its own flags, got others") as caught:
        relearned(["--resume", str(run), *flags])
    assert said in str(caught.value)
    config = json.loads((run / "config.json").read_text())
    assert config["lr"] == 5e-4
    assert config["task"] == "mnist"
