"""mtplug-joeynmt: Transformers of JoeyNMT 2 (Kreutzer et al. 2019) as runs of mtplug."""
