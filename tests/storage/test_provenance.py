"""Provenance: what differs between two runs is named, what one lacks is not."""

import re

from circuitcut.storage.provenance import code_version, differences


def test_settings_and_hashes_that_differ_are_named():
    one = {
        "settings": {"lr": 0.1, "units": ["heads"], "seed": 0},
        "data_sha256": "a" * 64,
        "weights_sha256": "b" * 64,
        "code_version": "1",
    }
    assert differences(one, one) == []
    other = {
        "settings": {"lr": 0.2, "units": [], "ramp": 1},
        "data_sha256": "c" * 64,
        "weights_sha256": None,
        "code_version": "2",
    }
    assert differences(one, other) == [
        "lr (0.1 before, 0.2 now)",
        "units (heads before, nothing now)",
        "the data (SHA-256 aaaaaaaa before, cccccccc now)",
    ]
    assert differences({}, other) == differences(one, {}) == []


def test_the_code_is_named_by_its_commit_or_its_files():
    assert re.fullmatch(r".+\+(git|source)\.[0-9a-f]{12}", code_version())
