"""mtplug-rdrop: regularised dropout."""
