"""A held unit is zero through all stages; a killed arm goes on to the same bits."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from circuitcut.attribution.words.states import WordSource, hidden_sites, word_states
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loaded import LoadedModel
from circuitcut.relearning.stages.arms import Arm
from circuitcut.relearning.stages.records import StageFiles
from circuitcut.relearning.stages.retraining import StagedStudy, StageOf, run_arm
from circuitcut.relearning.study import RelearnSettings
from circuitcut.storage.errors import UserError

SETTINGS = RelearnSettings(
    n_steps=3, batch_size=4, lr=1e-2, schedule="linear", checkpoint_every=0
)
CUT, SHOT = Arm("cut", "lasting", 0.2, 0), Arm("cut", "one_shot", 0.2, 0)
Observe = Callable[[nn.Module, StageOf], tuple[dict[str, Any], dict[str, Tensor]]]


def nothing(model: nn.Module, which: StageOf) -> tuple[dict[str, Any], dict]:
    return {}, {}


def study_of(
    task: Any, loaded: LoadedModel, observe: Observe = nothing, **changes: Any
) -> StagedStudy:
    accelerator = Accelerator(cpu=True)
    study = StagedStudy(task, loaded, SETTINGS, 2, observe, accelerator)
    return replace(study, **changes)


@pytest.fixture
def mask(encoder: LoadedModel) -> FrozenMask:
    sites = hidden_sites(encoder.model)
    scores = {
        site.name: torch.rand(16, generator=torch.Generator().manual_seed(i))
        for i, site in enumerate(sites)
    }
    return FrozenMask.exactly_k(
        scores,
        sites,
        zero_values(sites),
        n_ablated=10,
        special_ids=encoder.special_ids,
    )


def pruned_states(task: Any, mask: FrozenMask, seen: list[Tensor]) -> Observe:
    """Keeps the states of the pruned units at every stage."""
    pruned = ~torch.cat([mask.keep[site.name] for site in mask.sites])

    def observe(model: nn.Module, which: StageOf):
        batches = word_states(WordSource(task, "mask"), model, mask.sites)
        seen.append(torch.cat([states[:, pruned] for _, states in batches]))
        return {"seen": which.number}, {"pruned": pruned}

    return observe


def test_a_held_unit_is_constant_through_all_stages_and_a_one_shot_one_moves(
    task, encoder, mask, tmp_path
):
    before = deepcopy(encoder.model.state_dict())
    held: list[Tensor] = []
    study = study_of(task, encoder, pruned_states(task, mask, held))
    records = run_arm(study, CUT, mask, tmp_path / "held")
    assert len(held) == len(records) == 3
    assert all((states == 0).all() for states in held)
    free: list[Tensor] = []
    study = study_of(task, encoder, pruned_states(task, mask, free))
    run_arm(study, SHOT, mask, tmp_path / "free")
    assert (free[0] == 0).all()
    assert (free[1] != 0).any()
    assert (free[2] != free[1]).any()
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name])  # the base model is as it was
    assert [r.header["step"] for r in records] == [0, 3, 6]
    assert [r.header["examples"] for r in records] == [0, 12, 24]
    assert records[0].header["distance"] == 0 < records[1].header["distance"]
    assert records[2].header["seen"] == 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("arm", [CUT, SHOT], ids=["lasting", "one_shot"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_killed_arm_goes_on_to_the_same_bits(
    arm, kept, task, encoder, mask, tmp_path
):
    whole = run_arm(study_of(task, encoder), arm, mask, tmp_path / "whole")

    def killed(model: nn.Module, which: StageOf):
        if which.number > kept:
            raise KeyboardInterrupt
        return {}, {}

    with pytest.raises(KeyboardInterrupt):
        run_arm(study_of(task, encoder, killed), arm, mask, tmp_path / "again")
    finished = files_of(tmp_path / "again")
    assert f"stage-{kept}/stage.json" in finished
    assert f"stage-{kept + 1}/stage.json" not in finished
    resumed = run_arm(study_of(task, encoder), arm, mask, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
    assert [r.header for r in resumed] == [r.header for r in whole]
    for one, other in zip(resumed, whole, strict=True):
        scores = one.measurement().counts, other.measurement().counts
        assert all(torch.equal(scores[0][n], scores[1][n]) for n in scores[0])


def test_two_seeds_differ_and_one_seed_repeats(task, encoder, mask, tmp_path):
    runs = [
        run_arm(study_of(task, encoder), replace(CUT, seed=seed), mask, tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (run[-1].header["distance"] for run in runs)
    assert a == b != c


def test_the_optimiser_begins_anew_in_every_stage(task, encoder, mask, tmp_path):
    rates: list[tuple[int, float]] = []
    study = study_of(
        task,
        encoder,
        on_log=lambda arm, step, numbers: rates.append((step, numbers["lr"])),
    )
    run_arm(study, CUT, mask, tmp_path)
    assert [step for step, _ in rates] == list(range(6))
    falling = [rate for _, rate in rates]
    assert falling[:3] == falling[3:]
    assert falling[0] > falling[1] > falling[2]


def test_the_last_weights_alone_can_be_kept(task, encoder, mask, tmp_path):
    study = study_of(task, encoder, keep_weights="last")
    run_arm(study, CUT, mask, tmp_path)
    kept = [path.parent.name for path in tmp_path.rglob("weights.safetensors")]
    assert kept == ["stage-2"]
    run_arm(study, CUT, mask, tmp_path)  # what is finished is read


def test_a_stage_of_another_base_model_is_refused_and_kept(
    task, encoder, mask, tmp_path, corpus
):
    run_arm(study_of(task, encoder), CUT, mask, tmp_path)
    before = files_of(tmp_path)
    other = replace(encoder, model=deepcopy(encoder.model))
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    with pytest.raises(UserError, match="stage of another base model"):
        run_arm(study_of(task, other), CUT, mask, tmp_path)
    longer = study_of(task, encoder, settings=replace(SETTINGS, n_steps=4))
    with pytest.raises(UserError, match="other settings"):
        run_arm(longer, CUT, mask, tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [("units.safetensors", "is not the file"), ("weights.safetensors", "not the file")],
)
def test_a_damaged_stage_is_refused(name, said, task, encoder, mask, tmp_path):
    run_arm(study_of(task, encoder), CUT, mask, tmp_path)
    other = (tmp_path / "stage-2" / name).read_bytes()
    (tmp_path / "stage-1" / name).write_bytes(other)
    (tmp_path / "stage-2" / "stage.json").unlink()
    with pytest.raises(UserError, match=said):
        run_arm(study_of(task, encoder), CUT, mask, tmp_path)


def test_a_stage_whose_weights_are_gone_says_what_to_do(task, encoder, mask, tmp_path):
    run_arm(study_of(task, encoder), CUT, mask, tmp_path)
    (tmp_path / "stage-2" / "stage.json").unlink()
    (tmp_path / "stage-1" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"is gone, .* delete .*stage-1"):
        run_arm(study_of(task, encoder), CUT, mask, tmp_path)


def test_a_stage_of_a_later_format_is_refused(task, encoder, mask, tmp_path):
    run_arm(study_of(task, encoder), CUT, mask, tmp_path)
    path = tmp_path / "stage-0" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with pytest.raises(UserError, match="format_version 9"):
        StageFiles(tmp_path / "stage-0", {}).load()
