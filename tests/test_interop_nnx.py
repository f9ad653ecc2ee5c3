"""The NNX bridge computes what Linen computes, and gives the same parameters back."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smoljax.errors import SmoljaxError, UsageError
from smoljax.interop.nnx import from_nnx, to_nnx
from smoljax.nn.decoder import Decoder
from smoljax.nn.patch_encoder import PatchEncoder
from smoljax.nn.smolvlm import SmolVLM
from smoljax.nn.stacking import stack_layers

PIXELS = np.random.default_rng(0).standard_normal((1, 1, 3, 32, 32)).astype(np.float32)
BATCH = {
    "input_ids": jnp.asarray([[5, 300, 300, 300, 300, 6, 7]], jnp.int32),
    "pixel_values": jnp.asarray(PIXELS),
}


def parts(config, params):
    embeddings = jnp.asarray(
        np.random.default_rng(1).standard_normal((2, 5, config.text.hidden_size)), jnp.float32
    )
    return {
        "encoder": (
            PatchEncoder(config.vision),
            params["vision"],
            BATCH["pixel_values"][0],
            lambda out: out[0],
        ),
        "decoder": (Decoder(config.text), params["decoder"], embeddings, lambda out: out[0]),
        "whole": (SmolVLM(config), params, BATCH, lambda out: out.logits),
    }


def same_bytes(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", ["encoder", "decoder", "whole"])
def test_output_and_gradient_equal_linen(tiny_config, tiny_params, name):
    module, params, x, pick = parts(tiny_config, tiny_params)[name]

    def loss_of(out):
        return (out**2).mean(), out

    def linen(params, x):
        return loss_of(pick(module.apply({"params": params}, x)))

    def ours(model, x):
        return loss_of(pick(model(x)))

    (_, out), expected = jax.jit(jax.value_and_grad(linen, has_aux=True))(params, x)
    (_, got), found = nnx.jit(nnx.value_and_grad(ours, has_aux=True))(to_nnx(module, params), x)
    np.testing.assert_allclose(got, out, rtol=0, atol=1e-6)
    found = nnx.to_pure_dict(found)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize(("scan", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_parameters_come_back_byte_for_byte(tiny_config, tiny_params, scan, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny_params)
    params = stack_layers(params) if scan else params
    config = tiny_config.with_compute(scan_layers=scan, dtype=dtype)
    model = to_nnx(SmolVLM(config), params)
    same_bytes(from_nnx(model), params)
    graph, state = nnx.split(model)
    same_bytes(from_nnx(nnx.merge(graph, state)), params)
    logits = jax.jit(lambda state: nnx.merge(graph, state)(BATCH).logits)(state)
    assert logits.shape == (1, 7, config.text.vocab_size)


def test_numpy_parameters_methods_and_updates(tiny_config, tiny_params):
    model = to_nnx(SmolVLM(tiny_config), jax.tree.map(np.asarray, tiny_params))
    features, _ = model.encode_images(BATCH["pixel_values"])
    assert features.shape == (1, 1, 4, 32)
    nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model)))
    assert not np.asarray(model.encode_images(BATCH["pixel_values"])[0]).any()
    assert not np.asarray(from_nnx(model)["connector"]["proj"]["kernel"]).any()
    assert np.asarray(tiny_params["connector"]["proj"]["kernel"]).any()  # what it was made from stays


@pytest.mark.parametrize("wrap", [lambda p: {"params": p}, lambda p: {}])
def test_a_whole_variables_dict_is_refused(tiny_config, tiny_params, wrap):
    with pytest.raises(UsageError, match="the parameters themselves"):
        to_nnx(SmolVLM(tiny_config), wrap(tiny_params))


def test_a_flax_without_nnx_is_one_clear_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "smoljax.interop.nnx")
    monkeypatch.setitem(sys.modules, "flax.nnx", None)  # makes its import fail
    with pytest.raises(SmoljaxError, match=r"^flax\.nnx cannot be imported \(flax .*, jax .*upgrade both.*$"):
        importlib.import_module("smoljax.interop.nnx")
