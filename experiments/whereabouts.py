"""Where the concept sits after relearning: layers, words, and a fresh mask."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from circuitcut.attribution.registry import METHODS
from circuitcut.experiments.gate_optimisation import GateWatch
from circuitcut.experiments.gate_training import ablation_values, train_gates
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.saved_runs import settings_of_run
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.redistribution import redistribution
from circuitcut.relearning.top_words import UNWORDED, top_words
from circuitcut.storage.processes import is_first


@dataclass
class Whereabouts:
    """Called at the end of every condition, with its model and its mask still on."""

    experiment: Experiment
    mask: FrozenMask
    mask_path: Path
    with_fresh_mask: bool

    def __call__(
        self, condition: Condition, model: nn.Module, held: FrozenMask | None
    ) -> dict[str, Any]:
        """`redistribution` and `words` of a relearned cut; nothing of the others."""
        del held
        # of several processes one is enough, but all train a fresh mask together
        if condition.name != "cut" or not (is_first() or self.with_fresh_mask):
            return {}
        before, after = self._before, self._rank(model)
        fresh = self._fresh_mask(model) if self.with_fresh_mask else None
        moved_to = redistribution(before, after, self.mask, fresh=fresh)
        words = None
        if self.experiment.task.name not in UNWORDED:
            words = top_words(
                self.experiment.task,
                self.experiment.loaded.tokenizer,
                {"before": self.experiment.loaded.model, "after": model},
                {"before": before, "after": after},
                self.mask,
            )
        return {"redistribution": moved_to, "words": words}

    @property
    def words_note(self) -> str | None:
        """Why there are no words, where there are none."""
        return UNWORDED.get(self.experiment.task.name)

    @cached_property
    def _before(self) -> Mapping[str, Tensor]:
        return self._rank(self.experiment.loaded.model)

    def _rank(self, network: nn.Module) -> Mapping[str, Tensor]:
        """The ranking by mean difference (Lo et al. 2024)."""
        return METHODS["probeless"](
            self.experiment.task,
            network,
            self.mask.sites,
            self.mask.ablated,
            split="relearn",
            n_batches=16,
            size=16,
            seed=0,
            special_ids=self.experiment.loaded.special_ids,
        )

    def _fresh_mask(self, network: nn.Module) -> FrozenMask:
        """A mask trained like the first one on another network."""
        mask, experiment = self.mask, self.experiment
        settings = settings_of_run(self.mask_path, mask.n_units)
        moved = replace(experiment, loaded=replace(experiment.loaded, model=network))
        ablated = ablation_values(moved, mask.sites, settings)
        masks = train_gates(
            moved, mask.sites, ablated, settings, watch=GateWatch(progress="fresh mask")
        )
        return FrozenMask.exactly_k(
            masks.split(masks.ranking().detach().cpu()),
            mask.sites,
            ablated,
            n_ablated=mask.n_ablated,
            special_ids=mask.special_ids,
            provenance=mask.provenance,
        )
