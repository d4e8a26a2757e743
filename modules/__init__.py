"""Encoders, fusion strategies, projectors, heads, and the LightningModules that train them."""
