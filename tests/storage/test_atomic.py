"""Atomic files: round trips, the old file after a failure, and clear reasons."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from circuitcut.storage.atomic import (
    jsonable,
    read_json,
    read_metadata,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)
from circuitcut.storage.errors import UserError

TEXT = st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | TEXT
LEAVES |= st.floats(allow_nan=False, allow_infinity=False)
INNER = st.lists(LEAVES, max_size=3) | st.dictionaries(TEXT, LEAVES, max_size=3)
TREES = LEAVES | INNER | st.dictionaries(TEXT, INNER, max_size=3)


@contextmanager
def _files_of_at_most(n_bytes: int) -> Iterator[None]:
    """A real failure in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(deadline=None)
@given(value=TREES)
def test_plain_values_stay_as_they_are(value: object):
    assert jsonable(value) == value


def test_what_is_written_as_json_is_read_back(tmp_path: Path):
    value = {"a": [1, 0.1, None, True, "é\n"], "b": {"": -0.0}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.bool]),
)
def test_tensors_of_any_shape_and_dtype_are_read_back(
    sizes: list[int], dtype: torch.dtype, tmp_path_factory
):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensor = (torch.arange(int(np.prod(sizes))).reshape(sizes) % 3).to(dtype)
    write_tensors(path, {"x": tensor})
    back = read_tensors(path)["x"]
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_views_of_one_tensor_are_written_each_by_itself(tmp_path: Path):
    whole = torch.arange(6.0).reshape(2, 3)
    parts = {"whole": whole, "row": whole[1], "column": whole[:, 0], "turned": whole.T}
    write_tensors(tmp_path / "x.safetensors", parts)
    back = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[name], part) for name, part in parts.items())


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path):
    entries = {name: name.upper() for name in "qwertzuiop"}
    written = set()
    for order in (list(entries), sorted(entries), list(entries)[::-1]):
        path = tmp_path / "x.safetensors"
        tensors = {name: torch.full((3,), ord(name) * 1.0) for name in order}
        write_tensors(path, tensors, {name: entries[name] for name in order})
        written.add(path.read_bytes())
    assert len(written) == 1


def test_metadata_are_read_by_safetensors_too(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(2)}, {"unit": "nats", "é": 'quote " and ü'})
    assert read_metadata(path) == {"unit": "nats", "é": 'quote " and ü'}
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == read_metadata(path)


def test_nan_and_infinity_become_null():
    assert jsonable({"a": float("nan"), "b": [float("inf"), 1.5]}) == {
        "a": None,
        "b": [None, 1.5],
    }


def test_numbers_of_numpy_and_torch_and_paths_become_plain():
    value = {
        "array": np.array([1, 2]),
        "number": np.float32(0.5),
        "tensor": torch.tensor([[True]]),
        "path": Path("a") / "b",
        "set": {3, 1, 2},
        1: (None,),
    }
    assert jsonable(value) == {
        "array": [1, 2],
        "number": 0.5,
        "tensor": [[True]],
        "path": "a/b",
        "set": [1, 2, 3],
        "1": [None],
    }


def test_what_has_no_json_form_is_refused_by_type():
    with pytest.raises(TypeError, match="object has no JSON form"):
        jsonable({"a": object()})


def test_parents_are_made_and_nothing_else_is_left(tmp_path: Path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "atomic", "")
    write_tensors(tmp_path / "tensors", {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    with (
        pytest.raises(UserError, match=r"cannot write .*x: File too large"),
        _files_of_at_most(1024),
    ):
        write_bytes(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_do_not_fit_leave_the_old_file(tmp_path: Path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    with pytest.raises(UserError, match=r"cannot write .*x: "), _files_of_at_most(1024):
        write_tensors(path, {"x": torch.zeros(1000)})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some disk space"),
        (errno.EACCES, "Permission denied; choose a folder that you may write to"),
        (errno.EROFS, "Read-only file system; choose a folder that is not read-only"),
    ],
)
def test_a_full_disk_and_a_forbidden_folder_are_named(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=message) as caught:
        write_text(tmp_path / "results.json", "{}")
    assert str(tmp_path / "results.json") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "x", "")


def test_json_that_is_missing_or_broken_is_told_with_its_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none.json: No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{\n "a": 1,\n')
    with pytest.raises(UserError, match=r"broken.json is not JSON \(line 3"):
        read_json(tmp_path / "broken.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes.json, line 1: text must be UTF-8"):
        read_json(tmp_path / "bytes.json")


@pytest.mark.parametrize("read", [read_tensors, read_metadata])
def test_a_truncated_safetensors_file_is_named(read, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.arange(100.0)})
    whole = path.read_bytes()
    for length in (0, 5, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x.safetensors is truncated"):
            read(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        read(path)


def test_json_files_end_in_a_newline(tmp_path: Path):
    write_json(tmp_path / "x.json", {"a": 1})
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": 1}
