"""mtplug-sockeye: Transformers of Sockeye 3 (Hieber et al. 2022) as runs of mtplug."""
