"""The version, alone in its file so that the build and `--version` read it without importing anything."""

__version__ = "0.2.0"

# Raised whenever the same study would train to other numbers. 1: 0.1.0. 2: probes have the recipe of language models.
NUMERICS = 2
