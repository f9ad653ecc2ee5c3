"""Exported programs in runtimes other than jax's own."""
