"""Peak memory of a step, as measured by torch's allocator."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(
    step: Callable[[], None], forget: Callable[[], None] | None = None
) -> float:
    """Peak of the allocated bytes during a step minus the bytes allocated before it.

    Args:
        step: The step to measure; it first runs once to create the optimiser state.
        forget: Releases buffers that are kept between steps, so that they are included.
    """
    step()
    if forget is not None:
        forget()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
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
