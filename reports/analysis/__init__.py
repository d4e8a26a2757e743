"""What a study's numbers mean."""
