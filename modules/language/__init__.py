"""A language model that sees: decoder, splice, adapters, injection, and the LightningModule that joins them."""
