"""Save variables to one file, and load them again."""
