"""What is typed: one file a group of commands, and no logic."""
