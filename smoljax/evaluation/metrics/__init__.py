"""Metrics as pure functions: plain Python and NumPy, no model."""
