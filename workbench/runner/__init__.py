"""A study from the opening of its ledger to its last step."""
