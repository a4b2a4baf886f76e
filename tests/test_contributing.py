"""The examples of CONTRIBUTING.md work as they stand, in a copy of the repository.

The blocks are applied literally; all commands then run in the copy as subprocesses, so
that `circuitcut` is the copy and not the installed package.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from circuitcut.data.ioi.generated import generate_ioi
from circuitcut.models.tokenizer_training import train_tokenizer
from circuitcut.storage.atomic import read_json, read_tensors

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(?P<before>.*)\n\n```python\n(?P<code>(?s:.*?))^```$", re.M)
NEW_FILE = re.compile(r"New file `(?P<path>\S+)`:")
CHANGE = re.compile(r"In `(?P<path>\S+)`, (?P<where>after|in place of) `(?P<line>.+)`:")
NEW = {  # entry -> tests that must take it up
    "less_than": "test_the_cut_splits_share_no_example_of_the_concept",
    "straight_through": "test_higher_scores_are_kept_at_least_as_much",
    "starcoder2": "test_every_declared_width_is_the_measured_one",
    "my_lab": "test_a_mask_comes_back_from_every_format",
}
CONTRACTS = [
    *("tests/tasks/test_contract.py", "tests/masks/test_gates.py"),
    *("tests/masks/formats", "tests/models/test_architectures.py"),
    *("tests/masks/edges/test_sites.py", "tests/test_layers.py"),
]
QUICK = ["--device", "cpu", "--n_random", "1", "--attribution", "none"]


@dataclass(frozen=True)
class Step:
    """One code block and what is done with it; `line` None makes a new file."""

    path: str
    code: str
    where: str = ""
    line: str | None = None

    def apply(self, root: Path) -> None:
        file = root / self.path
        if self.line is None:
            assert not file.exists(), f"{self.path} is there already"
            file.write_text(self.code, encoding="utf-8")
            return
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        (place,) = [i for i, line in enumerate(lines) if line.strip() == self.line]
        lines[place + (self.where == "after") : place + 1] = [self.code]
        file.write_text("".join(lines), encoding="utf-8")


@cache
def steps() -> list[Step]:
    """Every code block of CONTRIBUTING.md, in order."""
    found = []
    for match in BLOCK.finditer(TEXT):
        before = match["before"].strip()
        parsed = NEW_FILE.fullmatch(before) or CHANGE.fullmatch(before)
        assert parsed, f"says nothing that can be applied: {before!r}"
        found.append(Step(code=match["code"], **parsed.groupdict()))
    assert len(found) == TEXT.count("```python")
    return found


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository with the examples in it."""

    root: Path
    scratch: Path

    def run(self, *words: str) -> str:
        """Run Python in the copy; what it printed."""
        own = {
            "PYTHONPATH": str(self.root),
            "CIRCUITCUT_CACHE": str(self.scratch / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr}"
        return done.stdout

    def command(self, line: str, *flags: str, **names: Path) -> str:
        """Run a command of CONTRIBUTING.md, with `names` filled in, and more flags."""
        assert f"{line}\n" in TEXT, f"CONTRIBUTING.md has no line {line!r}"
        words = shlex.split(line)[1:]
        return self.run(*[str(names.get(word, word)) for word in words], *flags)

    def newest(self, name: str) -> Path:
        """The newest run whose name begins with `name`."""
        found = (self.root / "runs").glob(f"{name}*/results.json")
        return max(found, key=lambda path: path.stat().st_mtime).parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The files that git tracks or would track, then every block in order."""
    root = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted in the working tree
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    for step in steps():
        step.apply(root)
    return Checkout(root, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def folder(checkout: Checkout) -> Path:
    """A random model of the new architecture, with a tokenizer of the IOI prompts."""
    path = checkout.scratch / "tiny-starcoder2"
    tokenizer = train_tokenizer(
        generate_ioi(0).texts(),
        "word",
        is_decoder=True,
        vocab_size=4096,
        max_length=64,
    )
    config = Starcoder2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Starcoder2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def results_of(run: Path) -> dict[str, Any]:
    results = read_json(run / "results.json")
    assert isinstance(results, dict)
    return results


def test_the_blocks_are_four_examples_whose_places_exist():
    new = [step.path for step in steps() if step.line is None]
    assert len(new) == 4  # an architecture is two lines, without a file
    for step in steps():
        if step.line is None:
            assert not (ROOT / step.path).exists()
            continue
        lines = (ROOT / step.path).read_text(encoding="utf-8").splitlines()
        places = [line for line in lines if line.strip() == step.line]
        assert len(places) == 1, f"{step.path} has {len(places)} lines {step.line!r}"


@pytest.mark.slow
def test_the_copy_is_what_is_imported_and_it_passes_ruff(checkout: Checkout):
    program = (
        "from circuitcut.tasks import less_than, base\n"
        "from circuitcut.masks.registry import GateSettings\n"
        "print(less_than.__file__, base.__file__, GateSettings().initial_logit)"
    )
    *files, logit = checkout.run("-c", program).split()
    assert [Path(file).parent for file in files] == [checkout.root / "tasks"] * 2
    assert float(logit) > 0
    paths = sorted({step.path for step in steps()})
    checkout.run("-m", "ruff", "check", "--no-cache", *paths)
    checkout.run("-m", "ruff", "format", "--no-cache", "--check", *paths)


@pytest.mark.slow
def test_the_contract_tests_take_up_every_new_entry_and_pass(checkout: Checkout):
    names = " or ".join([*NEW, "test_layers"])
    out = checkout.run(
        *("-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", names, *CONTRACTS)
    )
    for entry, name in NEW.items():
        assert re.search(rf"::{name}\[[^\]]*{entry}[^\]]*\] PASSED", out), entry
    own = "test_my_lab.py::test_the_one_negative_log_alpha_ablates"
    assert own in out
    gates = "test_a_mask_that_keeps_every_edge_changes_nothing"
    assert re.search(rf"::{gates}\[.*starcoder2.*\] PASSED", out)


@pytest.mark.slow
def test_the_task_is_learned_cut_relearned_and_reported(checkout: Checkout):
    shorter = ["--base_steps", "200", "--n_steps", "150", *QUICK]
    checkout.command("python scripts/train_mask.py --task less_than", *shorter)
    run = checkout.newest("less_than")
    results = results_of(run)
    name, scores = results["concept_metric"]["name"], results["scores"]
    assert results["task"] == "less_than"
    assert scores["uncut"][name] > 0.5
    assert scores["cut"][name] < scores["random"][0][name] - 0.2
    assert scores["cut"][name] < 0.2 * scores["uncut"][name]
    flags = ["--device", "cpu", "--n_steps", "10", "--n_evaluations", "2"]
    flags += ["--conditions", "cut", "uncut", "--seeds", "0", "--limits", "all"]
    checkout.command("python scripts/relearn.py", *flags)
    relearned = [r for r in checkout.root.glob("runs/*/conditions") if r.is_dir()]
    (relearn_run,) = [path.parent for path in relearned]
    found = results_of(relearn_run)
    assert found["mask"].endswith(run.name)
    first, *_, last = [
        r["concept"] for r in found["summary"] if r["condition"] == "cut"
    ]
    assert first == pytest.approx(scores["cut"][name], abs=1e-4)
    assert last > first + 0.1  # fine-tuning restores a part of the concept
    out = checkout.command("python scripts/report.py")
    page = (checkout.root / out.split("report: ")[1].strip()).read_text("utf-8")
    assert "less_than" in page
    assert name.replace("_", " ") in page


@pytest.mark.slow
def test_the_gate_trains_with_its_own_flag_and_cuts_the_concept(checkout: Checkout):
    line = "python scripts/train_mask.py --task mnist --gate straight_through"
    flags = ["--base_steps", "100", "--n_steps", "150", *QUICK]
    checkout.command(f"{line} --initial_logit 1", *flags)
    run = checkout.newest("mnist")
    settings = read_json(run / "settings.json")
    assert (settings["gate"], settings["initial_logit"]) == ("straight_through", 1.0)
    results = results_of(run)
    assert 0 < results["n_ablated"] < results["n_units"]
    uncut, cut = results["scores"]["uncut"], results["scores"]["cut"]
    assert cut["concept_accuracy"] < uncut["concept_accuracy"] - 0.3


@pytest.mark.slow
def test_edges_of_the_architecture_are_cut_and_its_mask_passes_through_the_format(
    checkout: Checkout, folder: Path
):
    line = "python scripts/train_mask.py --task ioi --model FOLDER_OR_HUB_NAME"
    flags = ["--n_steps", "4", "--batch_size", "8", "--n_ablated", "9", *QUICK]
    names = {"FOLDER_OR_HUB_NAME": folder}
    checkout.command(f"{line} --units edges", *flags, **names)
    run = checkout.newest("ioi")
    results = results_of(run)
    assert (results["n_ablated"], len(results["edges"])) == (9, 9)
    assert results["scores"]["cut"]["kl_retain"] > 0
    file = checkout.scratch / "mask.safetensors"
    out = "--format my_lab --out mask.safetensors"
    names |= {"runs/RUN": run, "mask.safetensors": file}
    checkout.command(f"python scripts/export_mask.py --mask runs/RUN {out}", **names)
    assert "layer1.q.log_alpha" in read_tensors(file)
    line = "python scripts/import_mask.py --file mask.safetensors --format my_lab"
    line += " --task ioi --model FOLDER_OR_HUB_NAME"
    name = checkout.root / "runs" / "imported"
    checkout.command(line, "--device", "cpu", "--name", name.name, **names)
    assert results_of(name)["format"] == "my_lab"
    before = read_tensors(run / "mask.safetensors")
    after = read_tensors(name / "mask.safetensors")
    assert before.keys() <= after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key
