"""Ablation of neurons by a rule; doors: `rule`, `values` and `rule_gate`."""
