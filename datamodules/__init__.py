"""Sources of samples, transforms, the feature store and the LightningDataModule."""
