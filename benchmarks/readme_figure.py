"""The figure at the top of README.md, of a mask run and its relearning.

    make demo
    python benchmarks/readme_figure.py --mask runs/RUN1 --relearning runs/RUN2

Writes docs/figures/overview.png; seconds after the demo's two minutes.
"""

from dataclasses import dataclass
from pathlib import Path

from circuitcut.reports.figures import overview
from circuitcut.reports.load import load_run
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.training.config import run_script

DOTS_PER_INCH = 160


@dataclass(frozen=True)
class FigureConfig:
    """Which runs are drawn, and where the figure goes."""

    mask: Path | None = flag(None, "a finished train_mask run")
    relearning: Path | None = flag(None, "a finished relearn run of that mask")
    out: Path = flag(Path("docs/figures/overview.png"), "the PNG file")

    def __post_init__(self) -> None:
        if self.mask is None or self.relearning is None:
            raise UserError("--mask and --relearning are needed: two run directories")


def main(config: FigureConfig) -> None:
    """Draw and save."""
    assert config.mask is not None
    assert config.relearning is not None
    figure = overview(load_run(config.mask), load_run(config.relearning))
    figure.savefig(config.out, dpi=DOTS_PER_INCH)
    print(f"figure: {config.out}")


if __name__ == "__main__":
    run_script(main, FigureConfig)
