"""mtplug-knn: translations that look up what was written in similar places before."""
