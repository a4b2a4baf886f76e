"""The tasks by name; a new one is one file and one line."""

from tasks.base import Task
from tasks.ioi import IoiTask
from tasks.locations import LocationsTask
from tasks.mnist import MnistTask
from tasks.toxicity import ToxicityTask

TASKS: dict[str, type[Task]] = {
    "locations": LocationsTask,
    "ioi": IoiTask,
    "toxicity": ToxicityTask,
    "mnist": MnistTask,
}
