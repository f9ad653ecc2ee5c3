"""What a step of decoding costs a layer, in counts that do not wobble: products, kernels, FLOPs, bytes, copies.

Bounds, not equalities: another jaxlib fuses a little otherwise. What they guard is named beside each. Speed itself is
measured by `smoljax bench`.
"""

import dataclasses
import functools
import re
from functools import partial

import jax
import numpy as np
import pytest

from smoljax import presets
from smoljax.bench.prompts import picture_prompt, text_prompt
from smoljax.generation import programs
from smoljax.generation.generator import Generator
from smoljax.generation.options import Sampling
from smoljax.nn.by_layer import compile_by_layer
from smoljax.nn.patch_encoder import PatchEncoder
from smoljax.nn.smolvlm import abstract_params, stored_params
from smoljax.ops.attention_by_heads import attention_by_heads

KEPT = ("float32", "bfloat16", "int8", "int4")


@functools.cache
def compiled(kept, layers, cache=None):
    """The decode program of the 256M geometry with so many layers, for a prompt of 100 tokens."""
    config = presets.get("smollm2-135m")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=layers))
    config = config.with_compute(cache=cache)
    generator = Generator(config, stored_params(config, kept), (), 0)
    return generator.compile(text_prompt(100), 64).decode


def body(program):
    """The lines of the loop's body."""
    parts = [part.strip() for part in program.as_text().split("\n\n")]
    return max((part for part in parts if "region" in part[:80]), key=len).splitlines()


def a_layer(kept, count, *cache):
    return count(compiled(kept, 2, *cache)) - count(compiled(kept, 1, *cache))


def kernels(program):
    return sum(bool(re.search(r"= \S+ (fusion|dot|copy|custom-call)\(", line)) for line in body(program))


def flops(program):
    return program.cost_analysis()["flops"]


def weights(kept, layers):
    params = stored_params(dataclasses.replace(presets.get("smollm2-135m"), text=_text(layers)), kept)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params["decoder"]))


def _text(layers):
    return dataclasses.replace(presets.get("smollm2-135m").text, num_layers=layers)


@pytest.mark.parametrize(("kept", "most"), [("float32", 33), ("bfloat16", 33), ("int8", 55), ("int4", 60)])
def test_a_layer_is_few_kernels(kept, most):
    """Each costs microseconds, whatever its work: q|k|v and gate|up are one product each."""
    assert a_layer(kept, kernels) <= most


@pytest.mark.parametrize("kept", KEPT)
def test_a_layer_does_the_products_once(kept):
    """Two parts of the activations with rounded weights, and attention; nothing is computed for padding rows."""
    text = presets.get("smollm2-135m").text
    products = 2 * (weights("int8", 2) - weights("int8", 1))  # one byte a weight, scales aside
    parts = {"float32": 1, "int4": 4}.get(kept, 2)  # int4: unpacking, too
    attention = 4 * 192 * text.num_heads * text.head_dim
    assert a_layer(kept, flops) < 1.3 * (parts * products + attention)


@pytest.mark.parametrize("kept", KEPT)
def test_rounded_weights_are_not_kept_in_float32(kept):
    """Converted weights that outlive a product would be streamed as float32: the loop must not hoist them."""
    extra = [compiled(kept, layers).memory_analysis().temp_size_in_bytes for layers in (1, 2)]
    assert extra[1] - extra[0] < 0.1 * (weights("float32", 2) - weights("float32", 1))
    text = presets.get("smollm2-135m").text
    assert extra[1] < 0.05 * 4 * text.vocab_size * text.hidden_size  # nor the word table


@pytest.mark.parametrize("kept", KEPT)
def test_the_cache_is_updated_in_place(kept):
    """The state goes in and comes out in the same memory."""
    memory = compiled(kept, 2).memory_analysis()
    text = presets.get("smollm2-135m").text
    cache = 2 * 2 * 192 * text.num_kv_heads * text.head_dim * 4
    assert memory.alias_size_in_bytes >= cache


@pytest.mark.parametrize(("cache", "most"), [("bfloat16", 33), ("int8", 44)])
def test_a_rounded_cache_is_read_as_it_is_and_written_in_place(cache, most):
    """No more kernels than rounding takes, no keys in float32 that outlive their layer, no copy to be written again."""
    assert a_layer("float32", kernels, cache) <= most
    text = presets.get("smollm2-135m").text
    numbers = 2 * 192 * text.num_kv_heads * text.head_dim  # of a layer
    one, two = (compiled("float32", layers, cache).memory_analysis() for layers in (1, 2))
    assert two.temp_size_in_bytes - one.temp_size_in_bytes < 0.1 * numbers
    per_number = {"bfloat16": 2, "int8": 1}[cache]
    assert (
        numbers * per_number <= two.alias_size_in_bytes - one.alias_size_in_bytes < 1.1 * numbers * per_number
    )


def test_nothing_is_compiled_for_a_longer_answer_of_the_same_bucket():
    config = presets.get("smollm2-135m")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=1))
    generator = Generator(config, stored_params(config, "float32"), (), 0)
    for prompt, new in ((100, 40), (120, 64), (99, 50)):
        generator.compile(text_prompt(prompt), new)
    assert generator.num_compilations == 2


def test_the_scores_of_all_heads_never_exist():
    """A tile's attention goes head by head: 50 MB of scores a layer were transposed and copied in memory before."""
    config = presets.smolvlm_256m()
    vision = dataclasses.replace(config.vision, num_layers=2)
    config = dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, num_layers=1))
    batch = picture_prompt(8, config.image_seq_len, config.image_token_id, vision.image_size)
    program = Generator(config, stored_params(config, "float32"), (), 0).compile(batch, 1).vision.layer
    scores = 4 * vision.num_heads * vision.num_patches**2
    activations = 4 * vision.num_patches * vision.intermediate_size
    assert program.memory_analysis().temp_size_in_bytes < scores
    assert program.memory_analysis().temp_size_in_bytes < 5 * activations + scores / vision.num_heads


def test_one_layer_is_compiled_for_what_runs_once():
    """The prefill's programs do not grow with the layers, nor copy them."""
    config = presets.get("smollm2-135m")
    lines = []
    for layers in (2, 4):
        own = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=layers))
        shapes = stored_params(own, "float32")
        generator = Generator(own, shapes, (), 0)
        program = generator.compile(text_prompt(100), 1).prefill
        lines.append(sum(len(each.as_text().splitlines()) for each in program.programs))
        a_layer = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes["decoder"]["layers_0"]))
        assert all(each.memory_analysis().temp_size_in_bytes < a_layer / 3 for each in program.programs)
    assert lines[1] < 1.1 * lines[0]


def test_a_prompt_leaves_out_the_keys_ahead_and_the_slots_behind():
    """Of 512 queries in blocks of 128 the scores of 10 of 16 blocks are made, however long the answer may be."""
    q, kv = (jax.ShapeDtypeStruct((1, 512, heads, 64), "float32") for heads in (9, 3))
    mask = jax.ShapeDtypeStruct((1, 512, 512), "bool")
    some, every = (
        flops(jax.jit(partial(attention_by_heads, causal=causal)).lower(q, kv, kv, mask).compile())
        for causal in (True, False)
    )
    assert 0.6 * every < some < 0.7 * every
    config = presets.get("smollm2-135m")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=1))
    batch = {"input_ids": np.zeros((1, 128), np.int32), "attention_mask": np.ones((1, 128), bool)}
    controls, work = programs.make_controls(config, Sampling(), (), 0), []
    for new in (16, 512):
        prefill = partial(programs.prefill, config, False, False, new, 0)
        made = compile_by_layer(prefill, "decoder", stored_params(config, "float32"), batch, controls)
        work.append(flops(made.layer))
    assert work[1] < 1.001 * work[0]


def test_scores_are_not_kept_for_the_backward_pass():
    """With remat "dots" a layer keeps what its `Linear`s give, and not the 50 MB of scores of a tile."""
    config = presets.get("smolvlm-256m")
    side, held = config.vision.image_size, []
    for layers in (2, 4):
        vision = dataclasses.replace(config.vision, num_layers=layers)
        own = dataclasses.replace(config, vision=vision, text=dataclasses.replace(config.text, num_layers=1))
        own = own.with_compute(scan_layers=True, remat="dots")
        params = abstract_params(own)["vision"]

        def loss(params, tile, own=own):
            return PatchEncoder(own.vision, own.compute).apply({"params": params}, tile)[0].sum()

        tile = jax.ShapeDtypeStruct((1, 3, side, side), "float32")
        memory = jax.jit(jax.grad(loss)).lower(params, tile).compile().memory_analysis()
        held.append(memory.temp_size_in_bytes)
    kept = 4 * vision.num_patches * (7 * vision.hidden_size + vision.intermediate_size)
    assert (held[1] - held[0]) / 2 < 1.3 * kept
