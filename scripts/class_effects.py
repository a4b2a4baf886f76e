"""Ablate a class of neurons and its controls on a text, token by token.

    python scripts/class_effects.py --model smollm2 --data valid.txt.gz \
        --classes weakening --n_tokens 20000
    python scripts/class_effects.py --model smollm2 --data valid.txt.gz \
        --classes weakening --when gate+/post+ gate+/post- gate-/post+ gate-/post-

Classes are those of weight_classes.py. Measured are loss, entropy, rank of the true
token and the scale of the final norm, clean and ablated; the same for --draws controls
of the same layers, drawn from all neurons outside the class and from those that are on
about as often; how often neurons are on and in which quadrant; and the texts that
change most, with the logit lens behind every sublayer and greedy continuations, clean
and ablated. The texts run once clean and once for each ablation, in memory that does
not grow with them: SmolLM2 needs 3 ms a token and pass on one core. --control_tokens
turns lets the draws of a control share the texts out, so that a control costs one pass
and not --draws. A killed run continues with --resume; at most a minute and a batch are
lost. Writes a run with results.json, tables (Markdown, CSV, LaTeX) and report.html.
"""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from circuitcut.experiments.class_effects.flags import ClassEffectsFlags
from circuitcut.storage.command_lines import command
from circuitcut.storage.errors import UserError
from circuitcut.storage.flag_fields import flag
from circuitcut.storage.run_directory import RunDirectory
from circuitcut.training.config import parse_first, run_script


@dataclass(frozen=True)
class ClassEffectsConfig(ClassEffectsFlags):
    """Which neurons of which model, on which text."""

    name: Path | None = flag(None, "name of the run directory; default: generated")
    resume: Path | None = flag(None, "continue this unfinished run")


parse_first(__name__, ClassEffectsConfig, __doc__)

import torch

from circuitcut.experiments.class_effects.study import Study
from circuitcut.experiments.class_effects.texts import documents, texts_of
from circuitcut.experiments.runs.resuming import begun, continued
from circuitcut.experiments.runs.without_task import begin, header, made_with
from circuitcut.models.loading import load_model
from circuitcut.reports.html import write_report
from circuitcut.reports.tables import format_table
from circuitcut.reports.weights.effect_tables import summary_rows
from circuitcut.storage.progress import Waiting


def main(config: ClassEffectsConfig) -> Path:
    """Begin a run, or continue one that no other process works on."""
    config.check_given()
    if config.data is None:
        raise UserError(
            "--data must name a text to measure on, for instance a .txt file"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda is not available here; use cpu")
    work = partial(_measured, config.data)
    return continued(config, config.resume, "class_effects", work)


def _measured(
    data: str, config: ClassEffectsConfig, resumed: RunDirectory | None
) -> Path:
    """Choose, measure, write tables and report; print the summary."""
    if resumed is None:
        RunDirectory.check(config.run_dir, config.name)
    corpus = documents(data, config.text_column)
    with Waiting(f"loading the model {config.model}"):
        loaded = load_model(
            config.model,
            head="causal_lm",
            revision=config.revision,
            device=config.device,
        )
    study = Study(config, loaded, texts_of(config, loaded, corpus))
    provenance = made_with(config, loaded.revision, **study.inputs)
    begun(resumed, provenance)
    run = resumed or begin(config, "class_effects", "effects", provenance)
    with nullcontext() if resumed else run.locked():
        if not run.is_writer:  # one of several processes is enough
            return run.path
        results = study.results(run.checkpoint_path)
        results |= header(
            config,
            "class_effects",
            provenance,
            ablation=config.ablation,
            n_ablated=study.n_ablated,
            n_units=study.n_units,
        )
        results["next"] = command("report", {"runs": run.path})
        run.write_results(results)
        shutil.rmtree(run.checkpoint_path, ignore_errors=True)
    rows = summary_rows(results)
    print(format_table(rows, list(rows[0])))
    print(f"report: {write_report([run.path], run.path / 'report.html')}")
    print(f"run: {run.path}\nnext: {results['next']}")
    return run.path


if __name__ == "__main__":
    run_script(main, ClassEffectsConfig)
