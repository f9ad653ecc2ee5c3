"""Programs made of one layer's: the same numbers as the whole function's, over weights where they lie."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax.generation import programs
from smoljax.generation.options import Sampling
from smoljax.nn.by_layer import compile_by_layer, has_layers
from smoljax.nn.packed import pack
from smoljax.nn.quantised import quantise
from smoljax.nn.smolvlm import picture_params
from smoljax.nn.stacking import stack_layers


def prompt(config, rows=2):
    ids = np.random.default_rng(3).integers(3, config.text.vocab_size - 40, (rows, 70)).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    mask[0, :5] = False
    return {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}


def near(found, wanted):
    def same(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == np.float32:
            np.testing.assert_allclose(a, b, atol=3e-6)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(same, found, wanted)


@pytest.mark.parametrize("kept", [None, "int8"])
def test_a_prompt_is_read_as_by_one_program(tiny_config, tiny_params, kept):
    params = jax.tree.map(jnp.asarray, pack(quantise(tiny_params, kept) if kept else tiny_params))
    batch = prompt(tiny_config)
    controls = programs.make_controls(tiny_config, Sampling(), (), 0)
    function = partial(programs.prefill, tiny_config, False, False, 8, 0)
    by_layer = compile_by_layer(function, "decoder", params, batch, controls)
    found, wanted = by_layer(params, batch, controls), jax.jit(function)(params, batch, controls)
    near(found, wanted)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), by_layer.result) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), wanted
    )
    near(by_layer(params, batch, controls), wanted)  # nothing of the arguments was given away


def test_tiles_are_encoded_as_by_one_program(tiny_config, tiny_params):
    parts = picture_params(tiny_config, jax.tree.map(jnp.asarray, tiny_params))
    side = tiny_config.vision.image_size
    tiles = jnp.asarray(np.random.default_rng(4).standard_normal((3, 3, side, side)), jnp.float32)
    mask = jnp.ones((3, side, side), bool).at[0, side // 2 :].set(False)
    function = partial(programs.encode_tiles, tiny_config)
    found = compile_by_layer(function, "vision", parts, tiles, mask)(parts, tiles, mask)
    near(found, jax.jit(function)(parts, tiles, mask))


def test_slots_that_the_caller_has_are_written_in_place(tiny_config, tiny_params):
    params = jax.tree.map(jnp.asarray, pack(tiny_params))
    batch, function = prompt(tiny_config), partial(programs.extend, tiny_config)

    def cache():
        made = programs.init_cache(tiny_config.text, tiny_config.compute, 2, 96)
        return jax.tree.map(jnp.asarray, made)

    extend = compile_by_layer(
        function, "decoder", params, batch, cache(), own=lambda batch, cache: cache.per_layer()
    )
    mine = cache()
    place = mine.k[0].unsafe_buffer_pointer()
    found, logits = extend(params, batch, mine)
    near((found, logits), jax.jit(function)(params, batch, cache()))
    assert found.k[0].unsafe_buffer_pointer() == place
    assert mine.k[0].is_deleted()


def test_what_has_no_such_layers_is_refused(tiny_config, tiny_params):
    params, batch = jax.tree.map(jnp.asarray, tiny_params), prompt(tiny_config)
    controls = programs.make_controls(tiny_config, Sampling(), (), 0)
    prefill = partial(programs.prefill, tiny_config, False, False, 8, 0)
    with pytest.raises(ValueError, match="another stack than the 2 layers of vision"):
        compile_by_layer(prefill, "vision", params, batch, controls)
    with pytest.raises(ValueError, match="does not run the layers of decoder"):
        compile_by_layer(lambda params, x: x, "decoder", params, jnp.zeros(3))
    assert has_layers(params, "decoder")
    assert not has_layers({"decoder": stack_layers(params["decoder"])}, "decoder")
