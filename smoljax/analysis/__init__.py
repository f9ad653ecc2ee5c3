"""Measurements of an embedding space that image patches and word tokens share.

Pure functions of NumPy arrays (`geometry`, `similarity`, `lens`, `probes`, `codes`, `retrieval`), what captures those
arrays from a model (`capture`), and what needs the model itself (`changes`, `forced`, `gradients`, `cost`). Nothing is
random but by a seed that is given.
"""
