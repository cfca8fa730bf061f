"""A run: its folder, lock, checkpoints, signals and console."""
