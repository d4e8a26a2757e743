"""A prepared study and its two records, ledger and MLflow."""
