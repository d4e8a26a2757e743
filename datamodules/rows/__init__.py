"""Files of rows in other people's formats: read, checked, quarantined."""
