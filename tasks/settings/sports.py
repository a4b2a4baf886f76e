"""Default settings of athletes' sports: those of prompts, which they are."""

from dataclasses import replace

from circuitcut.tasks.settings import prompts

DEFAULTS = replace(
    prompts.DEFAULTS, own_options=("concept", *prompts.DEFAULTS.own_options)
)
