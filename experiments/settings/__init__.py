"""The settings of a run: what they are, their presets, their flags, and what is wrong."""
