"""The tasks by name with their default settings: known before torch is imported."""

from circuitcut.tasks.defaults import TaskDefaults
from circuitcut.tasks.settings import (
    facts,
    ioi,
    locations,
    mnist,
    prompts,
    toxicity,
    words,
)

DEFAULTS: dict[str, TaskDefaults] = {
    "locations": locations.DEFAULTS,
    "ioi": ioi.DEFAULTS,
    "facts": facts.DEFAULTS,
    "prompts": prompts.DEFAULTS,
    "toxicity": toxicity.DEFAULTS,
    "words": words.DEFAULTS,
    "mnist": mnist.DEFAULTS,
}
