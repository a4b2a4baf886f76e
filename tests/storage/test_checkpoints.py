"""Checkpoints: whole or passed over, never half read."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.storage.checkpoints import latest_step, load_latest, save_state
from circuitcut.storage.errors import UserError

TEXT = st.text(max_size=5)
KEYS = TEXT.filter(lambda key: key != "__tensor__")
LEAVES = st.none() | st.booleans() | st.integers() | TEXT | st.floats()
LEAVES |= st.lists(st.floats(width=32), max_size=3).map(torch.tensor)
INNER = st.lists(LEAVES, max_size=3) | st.dictionaries(KEYS, LEAVES, max_size=3)
STATES = st.dictionaries(KEYS, LEAVES | INNER, max_size=3)
DAMAGES = [
    "truncated tensors",
    "flipped bit",
    "truncated state",
    "no tensors",
    "no json",
    "another step",
    "changed state",
    "lost tensor",
]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one.view(torch.int32), other.view(torch.int32))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or one != one)


def _damage(checkpoint: Path, how: str) -> None:
    tensors, state = checkpoint / "tensors.safetensors", checkpoint / "state.json"
    content = tensors.read_bytes()
    match how:
        case "truncated tensors":
            tensors.write_bytes(content[:-1])
        case "flipped bit":
            tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "truncated state":
            state.write_text(state.read_text()[:-2])
        case "no tensors":
            tensors.unlink()
        case "no json":
            state.write_text("[1]")
        case "another step":
            _edit(state, step=1_000_000)
        case "changed state":
            _edit(state, state={"x": {}})
        case "lost tensor":  # of a checkpoint before December 2026
            _edit(state, state={"x": {"__tensor__": "/y"}})
            _edit(state, state_sha256=None)


def _edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | entries
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept))


@settings(deadline=None, max_examples=20)
@given(state=STATES)
def test_any_nested_state_is_read_back(state: dict[str, Any], tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_state(folder, 3, state)
    step, back = load_latest(folder) or (None, None)
    assert step == 3
    assert _same(state, back)


def test_the_newest_two_are_kept(tmp_path: Path):
    for step in (5, 10, 100_000_000, 20):
        save_state(tmp_path, step, {"step": step})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000020", "step-100000000"]
    assert load_latest(tmp_path) == (100_000_000, {"step": 100_000_000})


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    save_state(tmp_path, 1, {"x": torch.zeros(2)})
    save_state(tmp_path, 1, {"x": torch.ones(2)})
    step, state = load_latest(tmp_path) or (None, {})
    assert step == 1
    assert torch.equal(state["x"], torch.ones(2))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_state(tmp_path, 1, {"x": torch.ones(3)})
    newest = save_state(tmp_path, 2, {"x": torch.zeros(3)})
    _damage(newest, how)
    with caplog.at_level(logging.WARNING):
        step, state = load_latest(tmp_path) or (None, {})
    assert step == latest_step(tmp_path) == 1
    assert torch.equal(state["x"], torch.ones(3))
    assert str(newest) in caplog.text


def test_only_damaged_checkpoints_are_an_error_and_none_is_a_start(tmp_path: Path):
    assert load_latest(tmp_path / "nowhere") is None
    assert load_latest(tmp_path) is None
    assert latest_step(tmp_path) == 0
    _damage(save_state(tmp_path, 2, {"x": torch.zeros(3)}), "truncated tensors")
    with pytest.raises(UserError, match=r"damaged: step-00000002"):
        load_latest(tmp_path)


def test_what_a_kill_left_behind_is_not_read_and_goes_away(tmp_path: Path):
    whole = save_state(tmp_path, 4, {"x": 4})
    shutil.copytree(whole, tmp_path / ".step-00000008.0123abcd.tmp")
    assert load_latest(tmp_path) == (4, {"x": 4})
    save_state(tmp_path, 6, {"x": 6})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]


def test_a_failed_save_leaves_the_ones_before(tmp_path: Path):
    save_state(tmp_path, 1, {"x": 1})
    with pytest.raises(TypeError, match="object has no place in a checkpoint"):
        save_state(tmp_path, 2, {"x": object()})
    with pytest.raises(TypeError, match="keys must be text"):
        save_state(tmp_path, 2, {"x": {3: 1}})
    assert load_latest(tmp_path) == (1, {"x": 1})
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unwritable_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        save_state(tmp_path / "file", 1, {})


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path):
    path = save_state(tmp_path, 7, {"a": {"b": [torch.ones(2), 0.5]}})
    assert {p.name for p in path.iterdir()} == {"state.json", "tensors.safetensors"}
    state = json.loads((path / "state.json").read_text())
    assert state["state"] == {"a": {"b": [{"__tensor__": "/a/b/0"}, 0.5]}}


def test_a_checkpoint_without_checksum_of_its_state_is_read_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = save_state(tmp_path, 7, {"x": torch.ones(2)})
    _edit(path / "state.json", state_sha256=None)
    with caplog.at_level(logging.INFO):
        assert latest_step(tmp_path) == 7
    assert "has no checksum of its own contents" in caplog.text


def test_what_the_caller_calls_damaged_is_passed_over(tmp_path: Path):
    for step in (1, 2):
        save_state(tmp_path, step, {"optimiser": {}})

    def check(step: int, state: dict[str, Any]) -> None:
        if step == 2:
            raise UserError(f"{state} lacks moments")

    assert load_latest(tmp_path, check) == (1, {"optimiser": {}})
