"""A study from the first look at its ledger to its last step."""
