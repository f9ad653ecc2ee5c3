"""smoljax: SmolVLM, the small vision-language model, in pure JAX."""

__version__ = "0.1.0"
