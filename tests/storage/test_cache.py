"""The cache folder and content hashes."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.storage.cache import cache_folder, content_hash


@settings(deadline=None)
@given(parts=st.lists(st.text(), min_size=2, max_size=4))
def test_joining_parts_changes_the_hash(parts: list[str]):
    assert content_hash(*parts) != content_hash("".join(parts))


def test_text_and_its_bytes_hash_alike_and_order_matters():
    assert content_hash("é", b"x") == content_hash("é".encode(), "x")
    assert content_hash("a", "b") != content_hash("b", "a")


def test_the_hash_is_sha256_of_length_and_content():
    by_hand = hashlib.sha256(b"\0\0\0\0\0\0\0\2ab").hexdigest()
    assert content_hash("ab") == by_hand


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CIRCUITCUT_CACHE", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/circuitcut")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/circuitcut")
    monkeypatch.setenv("CIRCUITCUT_CACHE", "~/mine")
    assert cache_folder() == Path("/home/someone/mine")
