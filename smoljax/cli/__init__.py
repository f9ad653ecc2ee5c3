"""The `smoljax` command. Modules import jax and friends inside their functions: help must come at once."""
