"""mtplug-terminology: terms of a glossary, written into the source, where a model learnt to follow them."""
