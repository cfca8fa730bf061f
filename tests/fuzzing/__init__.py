"""The calls that test_fuzz draws, and the results that it expects."""
