"""mtplug-contrastive: references against references with a word left out."""
