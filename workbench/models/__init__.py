"""Trained models, in and out of folders."""
