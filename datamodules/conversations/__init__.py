"""Conversations about images, to token ids and labels."""
