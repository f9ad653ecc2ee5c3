"""Measurements of an embedding space that image patches and word tokens share.

Pure functions of NumPy arrays (`geometry`, `similarity`, `lens`, `probes`, `codes`, `retrieval`), what captures those
arrays from a model (`capture`), and what needs the model itself (`causal`, `gradients`, `cost`). Everything is computed
in float64 where it is small and float32 where it is large; nothing is random but by a seed that is given.
"""
