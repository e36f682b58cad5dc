"""Building blocks of models: attention, position encodings, layers, losses."""
