"""A tiny model that sees, and a few records to ask it about."""

import pytest

from smoljax.processing.testing import tiny_processor
from smoljax.vlm import VLM


@pytest.fixture(scope="session")
def tiny_vlm(tiny_config, tiny_params):
    return VLM(tiny_config, tiny_params, tiny_processor(), name="tiny", untrained=True)
