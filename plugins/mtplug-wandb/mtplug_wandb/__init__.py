"""mtplug-wandb: runs on Weights & Biases."""
