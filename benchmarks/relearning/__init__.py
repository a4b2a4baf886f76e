"""Relearning beside fine-tuning by hand."""
