"""Probes and the bank that trains them side by side."""
