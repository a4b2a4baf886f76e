"""Dataclass fields that are also flags: the help text is declared with the field."""

from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

Headings = Mapping[str, tuple[str, ...]]
"""The flags under each heading of `--help`: the class variable `headings` of a config.

Flags that no base class lists stand under the class's `heading`."""


def flag(default: Any, help_text: str, *, has_own_default: bool = True) -> Any:
    """A dataclass field with a help text.

    Args:
        default: Default value of the field; a list is copied for every instance.
        help_text: Shown by `--help`.
        has_own_default: True: the flag's default is `default`. False: the flag's
            default is None, and the value is chosen later, for instance by the task's
            default settings; see `flags_of`.
    """
    metadata = {"help": help_text, "has_own_default": has_own_default}
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
        if "help" not in f.metadata:
            continue
        hint, text = hints[f.name], f.metadata["help"]
        if f.metadata["has_own_default"]:
            declared.append((f.name, hint, flag(f.default, text)))
        else:
            declared.append((f.name, hint | None, flag(None, text)))
    return make_dataclass(f"{settings.__name__}Flags", declared, frozen=True)
