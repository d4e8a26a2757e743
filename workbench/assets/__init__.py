"""The embedded files: fetched once, converted once, verified at every use."""
