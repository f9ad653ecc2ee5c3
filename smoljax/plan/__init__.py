"""Plans for hardware that is not there: the real training step compiled for a described TPU slice, and read."""
