"""Time and peak memory of a step, the latter as measured by torch's allocator."""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from circuitcut.storage.errors import UserError


def check_device(device: str) -> None:
    """Check that `--device` is there.

    Raises:
        UserError: When it is a GPU and torch finds none.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {device} needs a GPU, and torch.cuda.is_available() is false; "
            "use cpu"
        )


def device_name(device: str) -> str:
    """The name of the card, or `cpu` with torch's number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} thread(s)"


def seconds(
    step: Callable[[], None],
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one step by `clock`; on a GPU until the last kernel has ended."""
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if is_cuda:
        torch.cuda.synchronize(device)
    return clock() - start


def interleaved(
    steps: Mapping[str, Callable[[], None]],
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every step in every round; each round begins with another step."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(steps[name], device, clock))
    return times


def median_ratio(times: Sequence[float], plain: Sequence[float]) -> float:
    """Median of the ratios of a step to the plain one, round by round."""
    return statistics.median(t / p for t, p in zip(times, plain, strict=True))


def peak_bytes(
    step: Callable[[], None],
    forget: Callable[[], None] | None = None,
    device: str = "cpu",
) -> float:
    """Peak of the allocated bytes during a step minus the bytes allocated before it.

    Args:
        step: The step to measure; it first runs once to create the optimiser state.
        forget: Releases buffers that are kept between steps, so that they are included.
        device: Where the step runs.
    """
    step()
    if forget is not None:
        forget()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # no lines about its start and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event["name"] == "[memory]"
    )
    held = peak = 0.0
    for _, n_bytes in changes:
        held += n_bytes
        peak = max(peak, held)
    return peak
