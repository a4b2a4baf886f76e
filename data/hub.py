"""Hub data sets, loaded by name with the library `datasets`."""

import re
from typing import TYPE_CHECKING

from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_ranges import quoted
from circuitcut.storage.hub_access import offline_without_answer

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PREFIX = "hub:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def check_hub_name(name: str, argument: str = "a hub data set") -> None:
    """Refuse what cannot be a data set's name, without a look at the hub.

    Args:
        name: With or without `hub:` before it.
        argument: What is named by it, for the message.

    Raises:
        UserError: When it is not of the form `owner/name`.
    """
    if not _NAME.fullmatch(name.removeprefix(HUB_PREFIX)):
        raise UserError(
            f"{argument} must be {HUB_PREFIX}owner/name, got {quoted(name)}"
        )


def load_hub(
    name: str, config: str | None = None, revision: str | None = None
) -> dict[str, "Dataset"]:
    """Every part (`train`, `test`, ...) of a hub data set, by name.

    Args:
        name: `owner/name`, with or without `hub:` before it.
        config: Configuration, where the data set has several.
        revision: Branch, tag or commit.

    Raises:
        UserError: When it cannot be loaded; the message has the reason in one line.
    """
    # imported here because it takes a second, and most runs do not need it
    check_hub_name(name)
    is_offline = offline_without_answer()
    from datasets import Dataset, DatasetDict, load_dataset

    name = name.removeprefix(HUB_PREFIX)
    try:
        loaded = load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if is_offline:
            reason = ["the hub does not answer, and it was not downloaded before"]
        raise UserError(
            f"cannot load hub data set {name!r}: {reason[0].rstrip('.')}; check its "
            "name, --hub_config, --hub_revision and the network"
        ) from error
    if isinstance(loaded, Dataset):
        return {"train": loaded}
    if not isinstance(loaded, DatasetDict):
        raise UserError(f"hub data set {name!r} must be a table, got {type(loaded)}")
    return {str(part): table for part, table in loaded.items()}
