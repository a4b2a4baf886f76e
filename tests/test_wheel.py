"""The wheel alone is enough, also beside folders that are called as ours once were."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import data, masks, models, tasks  # the user's own

assert data.THEIRS == masks.THEIRS == models.THEIRS == tasks.THEIRS == "theirs"

import torch
import circuitcut
from circuitcut import FrozenMask, MaskSettings, TASKS, evaluate, learn_mask, sites_of
from circuitcut import MaskConfig, load, with_base_model

assert "site-packages" in circuitcut.__file__, circuitcut.__file__
config = MaskConfig(task="mnist", base_steps=200, device="cpu")
experiment = with_base_model(load(config))
task, model = experiment.task, experiment.loaded.model

def loss(model, step):
    outputs = task.outputs(model, task.batch("mask", step, size=64, seed=0))
    concept, retain = outputs.concept, outputs.retain
    wrong = torch.logit(concept.logits.softmax(-1)[:, 3].clamp(1e-6, 1 - 1e-6))
    right = torch.nn.functional.cross_entropy(retain.logits, retain.targets)
    return wrong.clamp(min=-3).mean(), right

sites = sites_of(model, ["weights"])
settings = MaskSettings(k_min=20, k_max=400, n_steps=60, lr=0.3)
mask = learn_mask(model, sites, loss, settings).freeze(n_ablated=150)
uncut = evaluate(task, model, "heldout").scores
cut = evaluate(task, model, "heldout", cut=lambda batch: mask.applied(model)).scores
assert uncut["concept_accuracy"] > 0.8, uncut
assert cut["concept_accuracy"] < 0.3, cut
assert cut["retain_accuracy"] > 0.7, cut
from pathlib import Path
mask.save(Path("saved"))
assert FrozenMask.load(Path("saved"), model).n_ablated == 150
print("saved")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout's files."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True)
    return next(folder.glob("circuitcut-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {p for p in packages if not p.endswith(".dist-info")} == {"circuitcut"}
    assert "circuitcut/masks/edges/products.cpp" in names
    shipped = {n.split("/")[1] for n in names if n.startswith("circuitcut/")}
    assert not {"tests", "benchmarks", "docs"} & shipped
    ours = {
        f"circuitcut/{path.relative_to(ROOT)}"
        for package in shipped - {"__init__.py"}
        for path in (ROOT / package).rglob("*.py")
    }
    assert ours <= set(names)


@pytest.mark.slow
def test_a_mask_is_learned_beside_folders_of_the_same_names(
    wheel: Path, tmp_path: Path
):
    python = installed(wheel, tmp_path / "environment")
    work = tmp_path / "work"
    for folder in ("data", "models"):
        (work / folder).mkdir(parents=True)
        (work / folder / "__init__.py").write_text("THEIRS = 'theirs'\n")
    for module in ("tasks", "masks"):
        (work / f"{module}.py").write_text("THEIRS = 'theirs'\n")
    (work / "notebook.py").write_text(PROGRAM)
    done = run([python, "notebook.py"], work)
    assert done.stdout.endswith("saved\n")
    listed = run([python.parent / "circuitcut", "--help"], work)
    assert "train-mask" in listed.stdout
    flags = ["train-mask", "--task", "mnist", "--base_steps", "200", "--n_steps", "20"]
    flags += ["--n_ablated", "100", "--n_random", "1", "--attribution", "none"]
    trained = run([python.parent / "circuitcut", *flags], work)
    command = f"next: {python.parent / 'circuitcut'} relearn --mask"
    assert command in trained.stdout
    assert len(list((work / "runs").glob("*/mask.safetensors"))) == 1


def installed(wheel: Path, folder: Path) -> Path:
    """The python of a new environment with the wheel and our requirements alone.

    Those are lent by the environment of the tests, without its editable installation:
    a path in a .pth file adds a folder, but not the .pth files in it.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(command: list, work: Path) -> subprocess.CompletedProcess[str]:
    """The command's output, in a folder that is no checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"CIRCUITCUT_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
