"""The world around a command: files, MLflow and its outages, the terminal, hardware, models on disk."""
