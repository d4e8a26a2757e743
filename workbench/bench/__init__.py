"""`workbench bench`: what the workbench costs beside what it is held against, in ratios taken in turn."""
