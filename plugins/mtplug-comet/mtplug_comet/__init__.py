"""mtplug-comet: a learnt metric."""
