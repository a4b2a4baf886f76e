"""The tasks by name; a new task is one file and one line."""

from circuitcut.tasks.base import Task
from circuitcut.tasks.behaviours.greater_than import GreaterThanTask
from circuitcut.tasks.behaviours.induction import InductionTask
from circuitcut.tasks.behaviours.two_way import CapitalOfTask, SportsTask
from circuitcut.tasks.facts.task import FactsTask
from circuitcut.tasks.ioi import IoiTask
from circuitcut.tasks.locations import LocationsTask
from circuitcut.tasks.mnist import MnistTask
from circuitcut.tasks.prompts import PromptsTask
from circuitcut.tasks.toxicity import ToxicityTask
from circuitcut.tasks.words import WordsTask

TASKS: dict[str, type[Task]] = {
    "locations": LocationsTask,
    "ioi": IoiTask,
    "greater_than": GreaterThanTask,
    "induction": InductionTask,
    "capital_of": CapitalOfTask,
    "sports": SportsTask,
    "facts": FactsTask,
    "prompts": PromptsTask,
    "toxicity": ToxicityTask,
    "words": WordsTask,
    "mnist": MnistTask,
}
