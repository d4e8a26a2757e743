"""The body of each side command: what examines a machine, an encoder, a store or a plan, and prints."""
