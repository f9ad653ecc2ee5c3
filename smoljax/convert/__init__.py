"""Checkpoints: PyTorch names and files ↔ parameters, GGUF, LoRA, and the native format.

`convert.convert` and `convert.load_checkpoint` take any kind; the table of names is in `convert.names`.
"""
