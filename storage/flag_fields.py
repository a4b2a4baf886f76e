"""Dataclass fields that are also flags: the help text stands where the field does."""

from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints


def flag(default: Any, help_text: str, *, has_own_default: bool = True) -> Any:
    """A dataclass field whose text `--help` shows.

    Args:
        default: A list is copied for every instance.
        help_text: Shown by `--help`.
        has_own_default: The flag's default is `default`; else it is None, which leaves
            the value to something chosen later (a task's recipe), see `flags_of`.
    """
    metadata = {"help": help_text, "has_own_default": has_own_default}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flags_of(settings: type) -> Any:
    """A frozen dataclass of the fields of `settings` that have a help text, as flags.

    A field without a default of its own becomes optional: None says that the flag was
    not given. So a setting is declared once, where it is used.
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
