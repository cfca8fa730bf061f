"""Runnable studies: one small file a dataset over one shared pipeline."""
