"""What a study is held against: another study, a paper's table, probes, `--fail-on`."""
