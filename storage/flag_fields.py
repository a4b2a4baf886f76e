"""Dataclass fields that are also flags: the help text is declared with the field."""

from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

Headings = Mapping[str, tuple[str, ...]]
"""The flags under each heading of `--help`: the class variable `headings` of a config.

Flags that no base class lists stand under the class's `heading`."""


def flag(
    default: Any,
    help_text: str,
    *,
    has_own_default: bool = True,
    decides_defaults: bool = False,
) -> Any:
    """A dataclass field with a help text.

    Args:
        default: Default value of the field; a list is copied for every instance.
        help_text: Shown by `--help`.
        has_own_default: True: the flag's default is `default`. False: the flag's
            default is None, and the value is chosen later, for instance by the task's
            default settings; see `flags_of`.
        decides_defaults: Default values of other flags depend on this one. Where a
            saved run is repeated with another value of it, they are chosen anew.
    """
    metadata = {
        "help": help_text,
        "has_own_default": has_own_default,
        "decides_defaults": decides_defaults,
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
        if "help" not in f.metadata:
            continue
        hint, text = hints[f.name], f.metadata["help"]
        decides = f.metadata["decides_defaults"]
        if f.metadata["has_own_default"]:
            own = flag(f.default, text, decides_defaults=decides)
            declared.append((f.name, hint, own))
        else:
            own = flag(None, text, decides_defaults=decides)
            declared.append((f.name, hint | None, own))
    return make_dataclass(f"{settings.__name__}Flags", declared, frozen=True)
