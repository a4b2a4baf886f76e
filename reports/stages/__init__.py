"""A study in stages: tables (`tables`, `unit_tables`) and figures (`figures`)."""
