"""A prepared study and its two books, ledger and MLflow."""
