"""Words and mechanisms for everybody."""
