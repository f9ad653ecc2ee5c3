"""smoljax: SmolVLM, the small vision-language model, in pure JAX.

    vlm = smoljax.load("path-or-name")
    vlm.generate("What is on the table?", images=["photo.jpg"])

Names are imported when they are first used, so that `import smoljax` costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ComputeConfig": "smoljax.config",
    "SmolVLMConfig": "smoljax.config",
    "TextConfig": "smoljax.config",
    "VisionConfig": "smoljax.config",
    "SmoljaxError": "smoljax.errors",
    "UsageError": "smoljax.errors",
    "Sampling": "smoljax.generation.options",
    "SmolVLM": "smoljax.nn.smolvlm",
    "abstract_params": "smoljax.nn.smolvlm",
    "init_params": "smoljax.nn.smolvlm",
    "Processor": "smoljax.processing.processor",
    "VLM": "smoljax.vlm",
    "load": "smoljax.models",
}

__all__ = [
    "VLM",
    "ComputeConfig",
    "Processor",
    "Sampling",
    "SmolVLM",
    "SmolVLMConfig",
    "SmoljaxError",
    "TextConfig",
    "UsageError",
    "VisionConfig",
    "abstract_params",
    "init_params",
    "load",
]

if TYPE_CHECKING:
    from smoljax.config import ComputeConfig, SmolVLMConfig, TextConfig, VisionConfig
    from smoljax.errors import SmoljaxError, UsageError
    from smoljax.generation.options import Sampling
    from smoljax.models import load
    from smoljax.nn.smolvlm import SmolVLM, abstract_params, init_params
    from smoljax.processing.processor import Processor
    from smoljax.vlm import VLM


def __dir__() -> list[str]:
    """Public names, for completion."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a public name from its home on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'smoljax' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
