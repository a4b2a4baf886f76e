"""Hub data sets, loaded by name with the library `datasets`."""

from typing import TYPE_CHECKING

from circuitcut.storage.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PREFIX = "hub:"


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
    from datasets import Dataset, DatasetDict, load_dataset

    name = name.removeprefix(HUB_PREFIX)
    try:
        loaded = load_dataset(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"cannot load hub data set {name!r}: {reason[0].rstrip('.')}; check its "
            "name, --hub_config, --hub_revision and the network"
        ) from error
    if isinstance(loaded, Dataset):
        return {"train": loaded}
    if not isinstance(loaded, DatasetDict):
        raise UserError(f"hub data set {name!r} must be a table, got {type(loaded)}")
    return {str(part): table for part, table in loaded.items()}
