"""Bridges to other libraries, one file each. Nothing in smoljax imports them: see docs/importing.md.

- `smoljax.interop.nnx`: any module of `smoljax.nn` as a Flax NNX module, and its parameters back.
"""
