"""The layout: where each sub-network's entries stand in every leaf of the global network."""
