"""Find the knowledge neurons of facts, and measure what scaling them does.

    python scripts/knowledge.py
    python scripts/knowledge.py --model smollm2 --data FOLDER --to_mask facts
    python scripts/knowledge.py --model multilingual-encoder --language en fr
    python scripts/knowledge.py --data FOLDER --processes 4 --name sweep
    python scripts/knowledge.py --data FOLDER --share 1/4 --name one
    python scripts/knowledge.py --join runs/one runs/two runs/three runs/four

For every fact that the model knows: integrated gradients of the object's probability
with respect to all MLP neurons, the units of each of its prompts, and those that its
paraphrases share (Dai et al. 2022). Then the units are suppressed and enhanced where
the object is predicted: the change of its probability, of that of other relations'
facts, and of as many random units of the same layers. At last every fact is edited: the
values of its units move to another object, and back. Beside them stand as many units of
a learned mask with --mask RUN. Writes a run with neurons.json and units/ (lists of
[layer, number]), found.jsonl, effects.jsonl, activity.jsonl and edits.jsonl, which a
killed run continues with --resume, and with --to_mask a mask for evaluate, relearn and
report. A sweep over many facts is shared out over the processes of this machine with
--processes, or over several machines with --share; --join writes the files that one
process would have written. About three seconds a fact and paraphrase on SmolLM2 and one
core; the built-in decoder takes two minutes, most of them its own training.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitcut.experiments.flags import run_dir_flag
from circuitcut.experiments.knowledge.flags import KnowledgeFlags
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class KnowledgeConfig(KnowledgeFlags):
    """Which facts, how units are found, and what is done to them."""

    name: Path | None = flag(None, "name of the run directory; default: generated")
    resume: Path | None = flag(None, "continue this unfinished run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes > 1 and (self.name is None or self.resume is not None):
            raise UserError(
                "--processes needs a new run's --name, by which the same command finds "
                "the shares that it began; leave --resume out"
            )


parse_first(__name__, KnowledgeConfig, __doc__)

from circuitcut.experiments.base_model import with_base_model
from circuitcut.experiments.describe import header, per_site
from circuitcut.experiments.knowledge.activity import Activity
from circuitcut.experiments.knowledge.edits import Edits, summarised_edits
from circuitcut.experiments.knowledge.facts import known_facts
from circuitcut.experiments.knowledge.masks import orders_of
from circuitcut.experiments.knowledge.processes import (
    of_joined,
    of_share,
    runs_of_shares,
    this_script,
)
from circuitcut.experiments.knowledge.products import (
    bake_,
    check_size,
    chosen_units,
    mask_of,
)
from circuitcut.experiments.knowledge.results import neurons, summarised
from circuitcut.experiments.knowledge.shares import (
    check_share,
    join_records,
    with_flags_of_shares,
)
from circuitcut.experiments.knowledge.study import FOUND_FILE, Study
from circuitcut.experiments.knowledge.unit_files import write_unit_files
from circuitcut.experiments.load import load, provenance_of
from circuitcut.experiments.runs.resolved import resolved
from circuitcut.experiments.runs.resuming import begin_or_continue, begun, data_check
from circuitcut.experiments.saved_runs import new_run, save_frozen
from circuitcut.models.architectures import sites_of
from circuitcut.models.saving import save_model
from circuitcut.reports.knowledge import edit_rows, effect_rows
from circuitcut.reports.tables import format_table
from circuitcut.storage.atomic import write_json
from circuitcut.storage.processes import end_with_parent, n_processes


def main(config: KnowledgeConfig) -> Path:
    """Begin a run, or continue one that no other process works on."""
    end_with_parent()  # of a share that another process has started
    if config.processes > 1:
        config = _with_shares(config)
    if config.join and config.resume is None:
        config = with_flags_of_shares(config)
    return begin_or_continue(config, config.resume, "knowledge", _found)


def _with_shares(config: KnowledgeConfig) -> KnowledgeConfig:
    """The flags of the run that joins the shares, which are found by then."""
    assert config.name is not None
    RunDirectory.check(config.run_dir, config.name)
    if n_processes() > 1:
        raise UserError(
            "--processes starts processes itself, got a launcher of several; leave one "
            "of the two out"
        )
    # trains the base model, and asks it for the facts, once for all
    experiment = with_base_model(load(config))
    check_size(config, experiment)
    n_facts = len(known_facts(config, experiment).facts)
    check_share(of_share(config, config.processes), n_facts)
    del experiment
    script = this_script("circuitcut.scripts.knowledge")
    runs = runs_of_shares(config, config.name, script)
    return of_joined(config, runs)


def _found(config: KnowledgeConfig, resumed: RunDirectory | None) -> Path:
    """Units of all facts, effects of all facts, then the numbers of all of them."""
    if resumed is None:
        RunDirectory.check(config.run_dir, config.name)
    experiment = with_base_model(load(config, data_check(resumed)))
    experiment = resolved(experiment, config)
    check_size(config, experiment)
    orders = orders_of(config.mask, experiment)
    known = known_facts(config, experiment)
    check_share(config, len(known.facts))
    made_with = provenance_of(experiment)
    begun(resumed, made_with)
    run = resumed or new_run(
        experiment, config, "knowledge", name=config.name, made_with=made_with
    )
    with nullcontext() if resumed else run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        if config.join and not (run.path / FOUND_FILE).exists():
            join_records(config.join, len(known.facts), run.path)
        study = Study(config, experiment, known.facts, run.path, orders)
        write_json(run.path / "neurons.json", neurons(study))
        write_unit_files(study, run.path)
        is_asked = (config.to_mask, config.bake) != ("none", "none")
        units = chosen_units(study) if is_asked else []
        effects, activity = study.effects(), Activity(study)
        edits = summarised_edits(study, Edits(study).records())
        mask = None
        if config.to_mask != "none":
            mask = mask_of(config, experiment, units)
            save_frozen(mask, None, run.path)
        sites = sites_of(experiment.loaded.model, ["neurons"])
        results = header("knowledge", experiment, sites, mask, "zero") | {
            **summarised(study, known, effects.entries, activity.records().entries),
            "triggers": activity.triggers(),
            "edits": edits,
            "masks": [str(path) for path in config.mask],
            "per_site": per_site(mask) if mask else [],
            "next": command("evaluate", {"mask": run.path, **run_dir_flag(config)})
            if mask
            else command("report", {"runs": run.path}),
        }
        if config.bake != "none" and not (run.path / "model").exists():
            bake_(config, experiment, units)
            save_model(experiment.loaded, run.path / "model")
        run.write_results(results)
    _show(run.path, results, *config.rule)
    return run.path


def _show(run: Path, results: dict[str, Any], rule: str) -> None:
    facts, sizes = results["facts"], results["sizes"]
    print(
        f"{facts['n_facts']} of {facts['n_known']} known facts (of {facts['n_data']}), "
        f"{facts['n_prompts']} prompts: {sizes['coarse']['mean']:.1f} units a prompt, "
        f"{sizes['refined']['mean']:.1f} a fact"
    )
    rows = effect_rows(results)
    for table in (rows, edit_rows(results)):
        if table:
            print(f"\n{format_table(table, list(table[0]))}")
    if not rows:
        print(f"no fact has units, nothing was scaled: lower --{rule}")
    if results["n_ablated"]:
        print(f"mask: {results['n_ablated']} of {results['n_units']:,} neurons ablated")
    print(f"run: {run}\nnext: {results['next']}")


if __name__ == "__main__":
    run_script(main, KnowledgeConfig)
