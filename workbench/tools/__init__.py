"""The body of each side command: what looks at a machine, an encoder, a store or a plan, and prints."""
