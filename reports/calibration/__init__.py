"""The referee's own error rates, counted on studies of known truth."""
