"""Decompose, initialise, apply and verify Flax Linen networks."""
