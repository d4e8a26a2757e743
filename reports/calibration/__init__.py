"""Error rates of the report's own statistics, counted on studies of known truth."""
