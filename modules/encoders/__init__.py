"""Frozen encoders: how they are read, their families, and a planted one."""
