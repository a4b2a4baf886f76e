"""Rows of token numbers that tasks make of their records."""
