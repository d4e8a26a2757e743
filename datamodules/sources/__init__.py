"""Where samples come from: a file a source."""
