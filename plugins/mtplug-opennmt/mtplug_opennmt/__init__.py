"""OpenNMT-py's and Eole's Transformers as runs of mtplug."""
