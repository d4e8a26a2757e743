"""What to train: search spaces, Optuna's samplers, and the bundled studies, one YAML file each."""
