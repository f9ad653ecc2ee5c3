"""Pictures, prompts and tokens: what stands between a user's files and the model's arrays. No jax in here."""

from smoljax.processing.config import ImageConfig, ProcessorConfig, VideoConfig
from smoljax.processing.images import ImageInput, open_image
from smoljax.processing.processor import Batch, Processor, Sample
from smoljax.processing.tiling import TilePlan, tile_plan
from smoljax.processing.tokenizer import IncrementalDecoder, Tokenizer
from smoljax.processing.video import Video, VideoInput

__all__ = [
    "Batch",
    "ImageConfig",
    "ImageInput",
    "IncrementalDecoder",
    "Processor",
    "ProcessorConfig",
    "Sample",
    "TilePlan",
    "Tokenizer",
    "Video",
    "VideoConfig",
    "VideoInput",
    "open_image",
    "tile_plan",
]
