"""Bytes and seconds of a step in several processes, over links of several speeds."""
