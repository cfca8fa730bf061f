"""The results of a run: their schema, scores, the speed-up, and the closing table."""
