"""The project's own dataset: drawn scenes with captions, questions, boxes and dense labels (docs/scenes.md)."""

from smoljax.data.scenes.blind import blind_baseline
from smoljax.data.scenes.build import CONFIGS, VERSION, open_scenes
from smoljax.data.scenes.parse import ParsedCaption, parse_caption
from smoljax.data.scenes.scene import Scene, scene

__all__ = [
    "CONFIGS",
    "VERSION",
    "ParsedCaption",
    "Scene",
    "blind_baseline",
    "open_scenes",
    "parse_caption",
    "scene",
]
