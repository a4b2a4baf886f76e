"""What is logged during a run: TensorBoard, and the same scalars in JSON lines."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from circuitcut.storage.run_directory import RunDirectory


class Tracker:
    """Writes scalars to `metrics.jsonl` and TensorBoard, all else to TensorBoard.

    On several processes the first one alone writes; calls on the rest do nothing.

    Args:
        run: The directory of both.
        resume_step: First step that will be written; what an interrupted run wrote from
            there on is cut off from `metrics.jsonl` and hidden in TensorBoard.
    """

    def __init__(self, run: RunDirectory, *, resume_step: int | None = None):
        self.run = run
        if resume_step is not None:
            run.truncate_metrics(resume_step)
        self._writer = (
            SummaryWriter(str(run.path), purge_step=resume_step)
            if run.is_writer
            else None
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name; a `/` in a name groups it in TensorBoard."""
        if self._writer is None:
            return
        self.run.log(step, **values)
        self.show(step, values)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers for TensorBoard alone, such as means of logged ones."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, values: Tensor) -> None:
        """Log how the entries of a tensor are distributed."""
        if self._writer is not None:
            entries = values.detach().float().cpu().flatten()
            self._writer.add_histogram(name, entries, step)

    def image(self, step: int, name: str, image: Tensor) -> None:
        """Log an image (height, width, channel): floats in [0, 1] or bytes."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log the flags of the run beside its results, for TensorBoard's table."""
        if self._writer is None:
            return
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in config.items()
        }
        self._writer.add_hparams(plain, dict(metrics), run_name=".")

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
