"""The study: what the transfer gains over training from scratch, and at which cost.

`python -m experiments.study --only STUDY` runs the trials of a declared study (`studies`), each the
command of `experiments.cifar10` in its own process (`trials`), and keeps their results in
docs/study. `--report` writes docs/results.md from them (`outcomes`, `tables`, `figure`).
"""
