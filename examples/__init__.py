"""Whole trainings, one file each: `python -m examples.NAME --help`."""
