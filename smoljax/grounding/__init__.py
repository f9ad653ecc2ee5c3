"""Where in a picture an answer comes from: location tokens → boxes, gradient-weighted attention → heat maps."""

from smoljax.grounding.explain import Relevance, relevance, relevances
from smoljax.grounding.locate import Grounding, LabelledBox, ground

__all__ = ["Grounding", "LabelledBox", "Relevance", "ground", "relevance", "relevances"]
