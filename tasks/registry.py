"""The tasks by name; a new one is one file and one line."""

from tasks.base import Task
from tasks.ioi import IoiTask
from tasks.locations import LocationsTask
from tasks.mnist import MnistTask

TASKS: dict[str, type[Task]] = {
    "locations": LocationsTask,
    "ioi": IoiTask,
    "mnist": MnistTask,
}
