"""Optimizers and learning-rate schedules: the kinds `optimizers` and `lr_schedulers`."""
