"""Names of the classes and of the groups that they are joined to.

Plain data: flags are read before torch is imported.
"""

from collections.abc import Mapping

PARTS: Mapping[str, tuple[int, int, int]] = {
    "strengthening": (1, 1, 1),
    "atypical strengthening": (1, 1, 0),
    "conditional strengthening": (1, 0, 1),
    "atypical conditional strengthening": (1, 0, 0),
    "proportional change": (0, 1, 1),
    "atypical proportional change": (0, 1, 0),
    "orthogonal output": (0, 0, 1),
    "weakening": (-1, 1, 1),
    "atypical weakening": (-1, 1, 0),
    "conditional weakening": (-1, 0, 1),
    "atypical conditional weakening": (-1, 0, 0),
}
"""Class -> its parts (a, b, c); `classes.py` says what they are."""
CLASSES = tuple(PARTS)
PLAIN = ("strengthening", "orthogonal output", "weakening")
"""Classes of neurons without a gate: a alone is 1, 0 or -1."""
OLDER_NAMES = {"enrichment": "strengthening", "depletion": "weakening"}
"""What drafts of the paper called the classes."""
HALF_COARSE: Mapping[str, str] = {
    name: name.removeprefix("atypical ") for name in CLASSES
}
"""Class -> one of six: typical and atypical ones are one."""
COARSE: Mapping[str, str] = {
    name: {1: "strengthening", 0: "neither", -1: "weakening"}[a]
    for name, (a, _, _) in PARTS.items()
}
"""Class -> one of three, by the sign a of cos(w_in, w_out) alone."""


def class_named(text: str) -> str | None:
    """The class of a name as one types it: `conditional_weakening`; None: no class."""
    name = text.replace("_", " ").replace("-", " ").lower()
    for older, newer in OLDER_NAMES.items():
        name = name.replace(older, newer)
    return name if name in PARTS else None
