"""Ablate a class of neurons and its controls on a corpus, and describe the effects."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitcut.experiments.class_effects.changed import described
from circuitcut.experiments.class_effects.edges import noticed
from circuitcut.experiments.class_effects.flags import ClassEffectsFlags
from circuitcut.experiments.class_effects.progress import SavedEffects
from circuitcut.experiments.class_effects.subjects import (
    Subjects,
    attributes,
    subjects_of,
)
from circuitcut.experiments.class_effects.texts import at_most, length_of
from circuitcut.masks.ablation import AblationValues, zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.neurons.rule import Rule
from circuitcut.masks.neurons.values import (
    check_gates,
    conditional_means,
    rule_values,
    watching,
)
from circuitcut.models.architectures import sites_of
from circuitcut.models.loaded import LoadedModel
from circuitcut.storage.cache import content_hash
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import shown
from circuitcut.weight_classes.activity import Activity, activity_of
from circuitcut.weight_classes.checkpoint import checkpoint_of
from circuitcut.weight_classes.classes import classify
from circuitcut.weight_classes.cosines import Cosines
from circuitcut.weight_classes.selection import (
    Chosen,
    choose,
    control_by,
    cosines_of,
    flipped_of,
    frozen_mask,
    n_chosen,
)
from circuitcut.weight_classes.tokens.effects import (
    Effects,
    Texts,
    batched,
    summary_of,
    token_effects,
)

Name = tuple[str, int | None, str]
"""Set of neurons (`class`, `layer`, `frequency`), number of the draw, condition."""


class Study:
    """One model on one corpus: what is chosen, measured and described.

    Raises:
        UserError: When the class or its controls cannot be ablated and measured.
    """

    def __init__(
        self, config: ClassEffectsFlags, loaded: LoadedModel, texts: list[list[int]]
    ):
        self.config, self.loaded, self.texts = config, loaded, texts
        self.model = loaded.model
        self.sites = sites_of(self.model, ["neurons"])
        self.checkpoint = checkpoint_of(self.model, loaded.name)
        self.flipped = [f.cpu() for f in flipped_of(self.checkpoint, config.convention)]
        self.special_ids = loaded.special_ids if config.positions == "words" else ()
        self.rng = torch.Generator().manual_seed(config.seed)
        self.n_units = sum(site.n_units for site in self.sites)
        rules = config.rules()
        for rule in rules.values():
            check_gates(self.model, self.sites, rule)
        self.sets, self.whole = self._sets()
        self.n_ablated = n_chosen(self.sets["class", None])
        self.masks = self._masks(rules)
        self.batches = list(self._batches(config.n_tokens))
        self.turns = self._turns()
        self.subjects: Subjects | None = (
            subjects_of(config, loaded) if config.subjects else None
        )

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of the tokens, the weights and the ablated neurons."""
        ablated = [(name, _places(mask)) for name, mask in self.masks.items()]
        return {
            "data_sha256": content_hash(repr(self.texts)),
            "weights_sha256": self.loaded.weights_sha256,
            "mask_sha256": content_hash(repr(ablated)),
        }

    @cached_property
    def cosines(self) -> list[Cosines]:
        """Of every neuron, layer by layer."""
        return cosines_of(self.checkpoint, self.config.convention)

    @cached_property
    def frequency(self) -> list[Tensor]:
        """Share of the sample's tokens at which a neuron is on, layer by layer."""
        return activity_of(self.model, self.sites, self._sample(), self.flipped).on()

    def results(self, checkpoints: Path) -> dict[str, Any]:
        """What results.json says beside its header and the way to go on.

        Args:
            checkpoints: Folder in which a killed run finds what it has measured.
        """
        config, masks, names = self.config, self.masks, list(self.masks)
        active = Activity(self.sites, self.flipped)
        effects = self._measured(checkpoints, active)
        norms = [of_layer.norm_out for of_layer in self.cosines]
        return {
            "selection": {
                **config.described(),
                "n_of_classes": n_chosen(self.whole),
                "controls": config.kinds_of_control,
                "draws": config.draws,
                "control_tokens": config.control_tokens,
                "gated": self.checkpoint.layout.is_gated,
                "theta": config.theta,
                "at_positions": config.at_positions,
            },
            "corpus": {
                "data": config.data,
                "n_texts": effects.n_texts,
                "n_tokens": effects.n_tokens,
                "length": length_of(config, self.model),
                "sample": min(config.sample, effects.n_tokens),
            },
            "clean": {name: s.described() for name, s in effects.clean.items()},
            "effects": [
                {
                    "set": name[0],
                    "draw": name[1],
                    "when": name[2],
                    "n_tokens": effect.n_tokens,
                    "ablated": {m: s.mean for m, s in effect.ablated.items()},
                    "difference": {
                        m: s.described() for m, s in effect.difference.items()
                    },
                }
                for name, effect in zip(names, effects.of.values(), strict=True)
            ],
            "summary": summary_of(names, list(effects.of.values())),
            "activity": [
                {"set": key[0], "draw": key[1], **active.of(chosen, norms)}
                for key, chosen in self.sets.items()
            ],
            "activity_by_layer": self._by_layer(active),
            "changed": self._changed(effects),
            "edges": self._edges() if config.edge_tokens else None,
            "attributes": self.subjects
            and attributes(config, self.loaded, self.checkpoint, self.subjects, masks),
        }

    def _sets(self) -> tuple[dict[tuple[str, int | None], Chosen], Chosen]:
        """The neurons of the class, those of every control, and the whole class."""
        config = self.config
        classes = [classify(cosines, config.tau).cpu() for cosines in self.cosines]
        chosen, whole = choose(config, classes, lambda: self.frequency, self.rng)
        sets: dict[tuple[str, int | None], Chosen] = {("class", None): chosen}
        for kind in config.kinds_of_control:
            for draw in range(config.draws):
                sets[kind, draw] = control_by(
                    kind,
                    chosen,
                    whole,
                    lambda: self.frequency,
                    config.tolerance,
                    self.rng,
                )
        return sets, whole

    def _masks(self, rules: Mapping[str, Rule]) -> dict[Name, FrozenMask]:
        """Of every condition and set."""
        ablated = {when: self._values(rule) for when, rule in rules.items()}
        return {
            (*key, when): frozen_mask(
                chosen, self.sites, values, special_ids=self.special_ids
            )
            for when, values in ablated.items()
            for key, chosen in self.sets.items()
        }

    def _values(self, rule: Rule) -> AblationValues:
        if rule == Rule("zero"):
            return zero_values(self.sites)
        means = None
        if rule.kind == "mean":
            means = conditional_means(
                self.model, self.sites, self._sample(), rule, self.flipped
            )
        return rule_values(rule, self.sites, self.flipped, means)

    def _batches(self, n_tokens: int) -> Iterator[Texts]:
        tokenizer: Any = self.loaded.tokenizer
        texts = list(at_most(self.texts, n_tokens))
        device = torch.device(self.config.device)
        return batched(texts, self.config.batch_size, tokenizer.pad_token_id, device)

    def _sample(
        self, n_tokens: int | None = None
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """The first texts, with the positions that count; default: `sample` tokens."""
        for texts in self._batches(n_tokens or self.config.sample):
            inputs = {"input_ids": texts.ids, "attention_mask": texts.attention}
            where = texts.where(self.special_ids)
            yield inputs, torch.nn.functional.pad(where, (0, 1))

    def _measured(self, checkpoints: Path, active: Activity) -> Effects:
        """The effects on all batches, those of an earlier process included."""
        config = self.config
        keys = {name: str(number) for number, name in enumerate(self.masks)}
        shown_of = {keys[n]: config.n_shown for n in self.masks if n[0] == "class"}
        effects = Effects.none(keys.values(), shown_of)
        saved = SavedEffects(checkpoints, effects, active, len(self.batches))
        label = f"texts under {len(self.masks)} ablations"
        left = self.batches[saved.n_done :]
        token_effects(
            self.model,
            shown(left, label, unit="batch"),
            {keys[name]: mask for name, mask in self.masks.items()},
            special_ids=self.special_ids,
            effects=effects,
            first=saved.n_done,
            changed_by=config.changed_by,
            turns={keys[name]: turn for name, turn in self.turns.items()},
            seen_clean=lambda where: watching(
                self.model, self.sites, where, active.see
            ),
            done=saved.done,
        )
        return effects

    def _edges(self) -> dict[str, Any]:
        batches = list(self._sample(self.config.edge_tokens))
        return noticed(self.model, self.masks, batches, self.config.edges_by)

    def _turns(self) -> dict[Name, tuple[int, int]]:
        """Which batches the draws of a control see, where they take turns.

        Raises:
            UserError: When a draw would see none.
        """
        n_draws, n_batches = self.config.draws, len(self.batches)
        if self.config.control_tokens == "all":
            return {}
        if n_batches < n_draws and self.config.kinds_of_control:
            raise UserError(
                f"--control_tokens turns needs a batch for each of the {n_draws} "
                f"draws, got {n_batches} of {self.config.batch_size} texts; give more "
                "text, or a smaller --batch_size"
            )
        return {name: (name[1], n_draws) for name in self.masks if name[1] is not None}

    def _by_layer(self, active: Activity) -> list[dict[str, Any]]:
        """Frequencies inside and outside the class, and correlations, by layer."""
        r_by_layer = active.correlations(self.cosines)
        rows = zip(active.on(), self.whole, r_by_layer, strict=True)
        return [
            {
                "layer": layer,
                "n_of_classes": int(inside.sum()),
                "on": float(on[inside].mean()) if inside.any() else None,
                "on_of_others": float(on[~inside].mean()) if not inside.all() else None,
                "correlations": r,
            }
            for layer, (on, inside, r) in enumerate(rows)
        ]

    def _changed(self, effects: Effects) -> list[dict[str, Any]]:
        pairs = zip(self.masks.items(), effects.of.values(), strict=True)
        changes = [
            (mask, name[2], change)
            for (name, mask), effect in pairs
            if effect.most_changed is not None
            for change in effect.most_changed.found()
        ]
        return [
            described(self.loaded, mask, when, change, self.config.n_generated)
            for mask, when, change in shown(changes, "changed texts", unit="text")
        ]


def _places(mask: FrozenMask) -> list[list[int]]:
    """Numbers of the ablated units, site by site."""
    return [(~mask.keep[s.name]).nonzero()[:, 0].tolist() for s in mask.sites]
