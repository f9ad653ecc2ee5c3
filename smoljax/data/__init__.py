"""Data: records, sources and the project's own `scenes` dataset; NumPy and Pillow, no JAX."""
