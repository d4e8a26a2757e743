"""From MLflow to records: the only readers."""
