"""How a model is asked: one `generate()` for each protocol."""
