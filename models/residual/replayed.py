"""Forward passes that begin at a higher block: those below are recorded once.

Copies of one batch that differ from some block on need the blocks below only once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuitcut.models.architectures import ARCHITECTURES, block_paths


def record_blocks(model: nn.Module, run: Callable[[], object]) -> list[Any]:
    """The output of every block in `run`, one forward pass of `model`.

    Empty if the model is not of a family of the table, or its blocks did not run.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ARCHITECTURES:
        return []
    blocks = [model.get_submodule(path) for path in block_paths(model)]
    outputs: dict[int, Any] = {}
    with ExitStack() as hooks, torch.no_grad():
        for number, block in enumerate(blocks):
            keep = partial(_keep, outputs, number)
            hooks.callback(block.register_forward_hook(keep).remove)
        run()
    return (
        [outputs[i] for i in range(len(blocks))] if len(outputs) == len(blocks) else []
    )


@contextmanager
def replayed(
    model: nn.Module, outputs: Sequence[Any], n_blocks: int, n_copies: int
) -> Iterator[None]:
    """The first `n_blocks` blocks return their recorded outputs inside the context.

    Args:
        outputs: What `record_blocks` gave.
        n_blocks: 0 changes nothing.
        n_copies: Rows of the recorded batch are copied so often, one whole batch after
            the other.
    """
    paths = block_paths(model)[:n_blocks] if n_blocks else []
    with ExitStack() as undo:
        for path, output in zip(paths, outputs, strict=False):
            block = model.get_submodule(path)
            # nobody reads the outputs of the blocks before the last of them
            value = _copied(output, n_copies) if path == paths[-1] else output
            earlier = vars(block).get("forward")
            vars(block)["forward"] = partial(_replay, value)
            undo.callback(_restore, block, earlier)
        yield


def _keep(
    outputs: dict[int, Any], number: int, _: nn.Module, __: Any, output: Any
) -> None:
    outputs[number] = output


def _copied(output: Any, n_copies: int) -> Any:
    if isinstance(output, Tensor):
        return output.repeat(n_copies, *[1] * (output.dim() - 1))
    if isinstance(output, tuple):
        return tuple(_copied(part, n_copies) for part in output)
    return output


def _replay(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _restore(block: nn.Module, earlier: Any) -> None:
    del vars(block)["forward"]
    if earlier is not None:
        vars(block)["forward"] = earlier
