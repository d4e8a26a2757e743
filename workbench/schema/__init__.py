"""What a study leaves in MLflow, as names and plain values: written by the study, read by the report.

The strings are a contract with every study that was ever tracked. A new one may be added; one that stands is never
changed, or old studies are no longer read.
"""
