"""Compose sub-networks into the global network, and extract them again."""
