"""mtplug-distill: students that learn from a teacher's distributions, or from its translations."""
