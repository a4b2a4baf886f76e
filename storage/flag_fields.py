"""Dataclass fields that are also flags: the help text is declared with the field."""

from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from circuitcut.storage.flag_ranges import WITHIN, Range

Headings = Mapping[str, tuple[str, ...]]
"""The flags under each heading of `--help`: the class variable `headings` of a config.

Flags that no base class lists stand under the class's `heading`."""

HELP, FREE_TEXT = "help", "free_text"
HAS_OWN_DEFAULT, DECIDES_DEFAULTS = "has_own_default", "decides_defaults"
OWN_METADATA = (HAS_OWN_DEFAULT, DECIDES_DEFAULTS, WITHIN, FREE_TEXT)
"""Keys of a flag's metadata that argparse does not know."""


def flag(
    default: Any,
    help_text: str,
    *,
    within: Range | None = None,
    free_text: bool = False,
    has_own_default: bool = True,
    decides_defaults: bool = False,
) -> Any:
    """A dataclass field with a help text.

    Args:
        default: Default value of the field; a list is copied for every instance.
        help_text: Shown by `--help`.
        within: The numbers that it may be, or that a list may hold; see
            `flag_ranges.check_flags`. None: every finite one.
        free_text: A text that names nothing, and so may be empty or long.
        has_own_default: True: the flag's default is `default`. False: the flag's
            default is None, and the value is chosen later, for instance by the task's
            default settings; see `flags_of`.
        decides_defaults: Default values of other flags depend on this one. Where a
            saved run is repeated with another value of it, they are chosen anew.
    """
    metadata = {
        HELP: help_text,
        WITHIN: within,
        FREE_TEXT: free_text,
        HAS_OWN_DEFAULT: has_own_default,
        DECIDES_DEFAULTS: decides_defaults,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flags_of(settings: type) -> Any:
    """A frozen dataclass of flags: the fields of `settings` that have a help text.

    A field with `has_own_default=False` becomes optional: None means that the flag was
    not given. Each setting is thus declared once, in the package that uses it.
    """
    hints = get_type_hints(settings)
    declared = []
    for f in fields(settings):
        if HELP not in f.metadata:
            continue
        hint, metadata = hints[f.name], f.metadata
        if metadata[HAS_OWN_DEFAULT]:
            declared.append((f.name, hint, field(default=f.default, metadata=metadata)))
        else:
            own = field(default=None, metadata=metadata | {HAS_OWN_DEFAULT: True})
            declared.append((f.name, hint | None, own))
    return make_dataclass(f"{settings.__name__}Flags", declared, frozen=True)
