"""An image classifier with one hidden layer and the interface of the architectures.

The published circuit-breaking experiment cuts its 784-50-5 form (METHODS.md 1.5).
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

MLP_TYPE = "circuitcut_mlp"


@dataclass(frozen=True)
class MlpConfig:
    """Sizes, with the names of transformers' configurations."""

    n_in: int
    intermediate_size: int
    labels: tuple[str, ...]
    """Class names, in the order of the logits."""
    model_type: str = MLP_TYPE
    num_hidden_layers: int = 1

    @property
    def hidden_size(self) -> int:
        """Width of the hidden layer, which is also its output."""
        return self.intermediate_size


@dataclass(frozen=True)
class ImageOutput:
    """Result of the forward pass, like transformers' output objects."""

    logits: Float[Tensor, "batch classes"]


class Mlp(nn.Module):
    """Linear, ReLU, linear; the task flattens and normalises the pixels.

    `blocks.0` holds the first layer and its ReLU, `output` the second layer. The units
    are the hidden ReLUs; the cuttable weights are those of the first layer.
    """

    def __init__(
        self,
        n_in: int,
        hidden: int,
        n_out: int,
        *,
        labels: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        names = [str(index) for index in range(n_out)] if labels is None else labels
        self.config = MlpConfig(n_in, hidden, tuple(names))
        layers = OrderedDict(linear=nn.Linear(n_in, hidden), relu=nn.ReLU())
        self.blocks = nn.ModuleList([nn.Sequential(layers)])
        self.output = nn.Linear(hidden, n_out)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small input of the forward pass, for `check_sites`."""
        return {"pixels": torch.zeros(2, self.config.n_in)}

    def forward(self, pixels: Float[Tensor, "batch pixel"]) -> ImageOutput:
        """Class logits of flattened images."""
        return ImageOutput(self.output(self.blocks[0](pixels)))
