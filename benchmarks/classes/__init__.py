"""Ablations of neurons of a class."""
