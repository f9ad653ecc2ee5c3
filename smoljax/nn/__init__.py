"""Flax Linen modules, each usable alone: see docs/importing.md."""
