"""The tasks by name with their default settings: known before torch is imported."""

from circuitcut.tasks.defaults import TaskDefaults
from circuitcut.tasks.settings import (
    capital_of,
    facts,
    greater_than,
    induction,
    ioi,
    locations,
    mnist,
    prompts,
    sports,
    toxicity,
    words,
)

DEFAULTS: dict[str, TaskDefaults] = {
    "locations": locations.DEFAULTS,
    "ioi": ioi.DEFAULTS,
    "greater_than": greater_than.DEFAULTS,
    "induction": induction.DEFAULTS,
    "capital_of": capital_of.DEFAULTS,
    "sports": sports.DEFAULTS,
    "facts": facts.DEFAULTS,
    "prompts": prompts.DEFAULTS,
    "toxicity": toxicity.DEFAULTS,
    "words": words.DEFAULTS,
    "mnist": mnist.DEFAULTS,
}
