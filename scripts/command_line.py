"""The console command `circuitcut`: one verb a script, with the script's own flags.

circuitcut train-mask --task locations
"""

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from circuitcut.training.config import run_script

VERBS = {
    "train-base": ("circuitcut.scripts.train_base", "TrainBaseConfig"),
    "train-mask": ("circuitcut.scripts.train_mask", "TrainMaskConfig"),
    "relearn": ("circuitcut.scripts.relearn", "RelearnConfig"),
    "relearn-stages": ("circuitcut.scripts.relearn_stages", "RelearnStagesConfig"),
    "evaluate": ("circuitcut.scripts.evaluate", "EvaluateConfig"),
    "attribute": ("circuitcut.scripts.attribute", "AttributeConfig"),
    "faithfulness": ("circuitcut.scripts.faithfulness", "FaithfulnessConfig"),
    "stability": ("circuitcut.scripts.stability", "StabilityConfig"),
    "weight-classes": ("circuitcut.scripts.weight_classes", "WeightClassesConfig"),
    "knowledge": ("circuitcut.scripts.knowledge", "KnowledgeConfig"),
    "select-mask": ("circuitcut.scripts.select_mask", "SelectConfig"),
    "class-effects": ("circuitcut.scripts.class_effects", "ClassEffectsConfig"),
    "report": ("circuitcut.scripts.report", "ReportConfig"),
    "export-mask": ("circuitcut.scripts.export_mask", "ExportConfig"),
    "import-mask": ("circuitcut.scripts.import_mask", "ImportConfig"),
}
"""From verb to the module of its `main`, and the class of its flags."""


def main() -> None:
    """Run the verb that the command line names.

    Raises:
        SystemExit: With status 2 when there is no such verb, 0 after help; else as the
            script.
    """
    program, *arguments = sys.argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    verb, *flags = arguments
    if verb not in VERBS:
        sys.stderr.write(
            f"circuitcut: error: unknown verb {verb!r}; known: {', '.join(VERBS)}\n"
        )
        raise SystemExit(2)
    sys.argv = [f"{program} {verb}", *flags]
    module, config = VERBS[verb]
    script = import_module(module)
    run_script(script.main, getattr(script, config))


def _usage() -> str:
    lines = ["usage: circuitcut VERB [flags]", "       circuitcut VERB --help", ""]
    for verb, (module, _) in VERBS.items():
        lines.append(f"  {verb:<16}{_summary(module)}")
    return "\n".join(lines)


def _summary(module: str) -> str:
    """First line of a module's docstring; reading is quicker than importing it."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
