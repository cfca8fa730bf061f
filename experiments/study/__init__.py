"""The study of the transfer: what it gains over training from scratch, and what that takes.

`python -m experiments.study` runs a declared grid of trials (`grid`), each the command of
`experiments.cifar10` in a process of its own (`trials`), and writes docs/results.md from the
`results.json` that they leave (`accounts`, `report`).
"""
