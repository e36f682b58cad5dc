"""mtplug-maskpredict: translations written all at once, and then in part again (Ghazvininejad et al. 2019)."""
