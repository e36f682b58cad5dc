"""mtplug-factors: source words that carry features, such as their part of speech (Sennrich and Haddow 2016)."""
