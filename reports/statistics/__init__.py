"""Intervals, tests, verdicts and power, on numpy and scipy alone; knows no study."""
