"""Draw runs: figures as PNG, and one self-contained HTML file of tables and figures.

    python scripts/report.py
    python scripts/report.py --runs runs/RUN ... --out report.html

Without --runs the newest finished train_mask run and the newest relearn run are taken.
Reads run directories only; the report is written into the last of them, or to --out,
which replaces an earlier report but no other file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from circuitcut.reports.html import write_report
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.flag_ranges import check_flags
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import run_script


@dataclass(frozen=True)
class ReportConfig:
    """Which runs, and where the page goes."""

    heading: ClassVar[str] = "report"

    runs: list[Path] = flag([], "run directories, in reading order")
    run_dir: Path = flag(Path("runs"), "where the newest runs are looked for")
    out: Path | None = flag(
        None,
        "the HTML file, new or an earlier report; default: report.html in the last run",
    )

    def __post_init__(self) -> None:
        check_flags(self)


def main(config: ReportConfig) -> Path:
    """Write the report and say where it is."""
    runs = config.runs or _newest(config.run_dir)
    out = config.out or runs[-1] / "report.html"
    path = write_report(runs, out)
    print(f"report: {path}")
    return path


def _newest(parent: Path) -> list[Path]:
    mask_run = RunDirectory.newest(parent, "train_mask").path
    try:
        return [mask_run, RunDirectory.newest(parent, "relearn").path]
    except UserError:  # no relearning yet
        return [mask_run]


if __name__ == "__main__":
    run_script(main, ReportConfig)
