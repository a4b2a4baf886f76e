"""A toy task of three Gaussian blobs, the first of which is the concept."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.models.loading import LoadedModel
from circuitcut.models.mlp import Mlp
from circuitcut.tasks.base import SPLITS, Batch, Head, Metric, Split, Task, TaskOptions

N_EXAMPLES, N_INPUTS, N_CLASSES = 60, 6, 3


class BlobTask(Task):
    """Which blob a point comes from; six points make a document."""

    name: ClassVar[str] = "blobs"
    head: ClassVar[Head] = "image_classification"
    concept_metric: ClassVar[Metric] = Metric("recall", True, "fraction")
    retain_metric: ClassVar[Metric] = Metric("retain_accuracy", True, "fraction")

    @classmethod
    def read(cls, options: TaskOptions) -> Any:
        raise NotImplementedError

    def __init__(self, *, n_examples: int = N_EXAMPLES):
        centres = 2.0 * torch.eye(N_CLASSES, N_INPUTS)
        self.splits: dict[str, Batch] = {}
        for number, split in enumerate(SPLITS):
            rng = torch.Generator().manual_seed(number)
            targets = torch.arange(n_examples) % N_CLASSES
            noise = 0.5 * torch.randn(n_examples, N_INPUTS, generator=rng)
            self.splits[split] = {
                "pixels": centres[targets] + noise,
                "targets": targets,
                "concept": targets == 0,
                "retain": targets != 0,
                "weights": torch.ones(n_examples),
                "cluster": torch.arange(n_examples) // 6,
                "unseen": torch.arange(n_examples) % 2 == 0,
            }

    def batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        return self.finetune_batch(split, step, size=size, seed=seed)

    def finetune_batch(
        self, split: Split, step: int, *, size: int, seed: int, limit: int | None = None
    ) -> Batch:
        data = self.splits[split]
        pool = torch.arange(len(data["targets"]))
        if limit is not None:
            pool = pool[data["concept"]][:limit]
        rng = torch.Generator().manual_seed(1000 * seed + step)
        chosen = pool[torch.randperm(len(pool), generator=rng)[:size]]
        return {key: value[chosen] for key, value in data.items()}

    def retain_batch(self, split: Split, step: int, *, size: int, seed: int) -> Batch:
        data = self.splits[split]
        chosen = (~data["concept"]).nonzero()[:, 0][:size]
        return {key: value[chosen] for key, value in data.items()}

    def evaluation_batches(self, split: Split, *, size: int) -> Iterator[Batch]:
        data = self.splits[split]
        for start in range(0, len(data["targets"]), size):
            yield {key: value[start : start + size] for key, value in data.items()}

    def counts(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        hits = model(**self.inputs(batch)).logits.argmax(-1) == batch["targets"]
        counts = {}
        for side in ("concept", "retain"):
            counts[side] = batch[side].float()
            counts[f"{side}_hits"] = (batch[side] & hits).float()
        return counts

    def summarise(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        def share(side: str) -> float:
            return float(counts[f"{side}_hits"].sum() / counts[side].sum())

        return {"recall": share("concept"), "retain_accuracy": share("retain")}

    def n_examples(self, split: Split) -> int:
        return len(self.splits[split]["targets"])


@pytest.fixture(scope="session")
def task() -> BlobTask:
    return BlobTask()


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """Four hidden units a class, planted by hand; gradients switched off."""
    model = Mlp(N_INPUTS, 4 * N_CLASSES, N_CLASSES)
    reads = torch.arange(4 * N_CLASSES) // 4
    with torch.no_grad():
        model.blocks[0].linear.weight.copy_(torch.eye(N_INPUTS)[reads])
        model.blocks[0].linear.bias.zero_()
        model.output.weight.copy_(torch.eye(N_CLASSES)[reads].T)
        model.output.bias.copy_(torch.tensor([-1.0, 0.0, 0.0]))
    model.requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=None,
        name="mlp",
        revision=None,
        config_hash="",
        head_is_new=False,
        is_decoder=False,
        special_ids=(),
    )


@pytest.fixture(scope="session")
def mask(loaded: LoadedModel) -> FrozenMask:
    """The four planted units of the concept, ablated."""
    sites = sites_of(loaded.model, ["neurons"])
    keep = {sites[0].name: torch.arange(sites[0].n_units) >= 4}
    return FrozenMask(keep, sites, zero_values(sites))
