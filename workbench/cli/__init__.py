"""What is typed: one file per group of commands, and no logic."""
