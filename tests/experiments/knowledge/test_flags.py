"""Flags of knowledge neurons that contradict each other are refused."""

from typing import Any

import pytest

from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.storage.errors import UserError


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"edit_strengths": [1.0]}, "must be two numbers"),
        ({"edit_strengths": [1.0, 8.0], "edit": "none"}, "is about edits"),
    ],
)
def test_strengths_are_two_and_of_an_edit(flags: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        KnowledgeFlags(task="facts", **flags)
