"""mtplug-align: cross-attention that is trained to align."""
