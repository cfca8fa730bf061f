"""Speed, side by side with what a user would pick instead: `python -m experiments.benchmark`.

Each module of `tables` holds one table of BENCHMARKS.md: its rows, their measurement and the text.
"""
