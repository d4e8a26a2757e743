"""What the benchmarks hold the workbench against: the same work as it is written elsewhere."""
