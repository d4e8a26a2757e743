"""What a study's YAML may say."""
