"""The feature store: what the encoder gave, on disk."""
