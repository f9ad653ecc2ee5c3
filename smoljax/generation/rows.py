"""The batch that is served: rows that requests join and leave, and the programs that work on it."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoljax.config import SmolVLMConfig
from smoljax.nn.cache import KVCache, init_cache
from smoljax.nn.smolvlm import forward
from smoljax.ops import sampling


@flax.struct.dataclass
class Rows:
    """R rows, each with a request's answer in the making, or free.

    Attributes:
      cache: keys and values, `index` [R] the slots that a row has filled, without gaps.
      token: [R] int32, the newest token, not yet fed.
      count: [R] int32, tokens of the answer so far.
      limit: [R] int32, tokens that the answer may have; 0 in a row that was never taken.
      done: [R] bool, a stop id was met.
      finite: [R] bool, False once a score was not a number.
      temperature, top_p: [R] float32; a temperature of 0 is greedy.
      top_k: [R] int32, the vocabulary's size for all.
      seed: [R] uint32.
    """

    cache: KVCache
    token: Any
    count: Any
    limit: Any
    done: Any
    finite: Any
    temperature: Any
    top_p: Any
    top_k: Any
    seed: Any

    def running(self) -> Bool[Array, " R"]:
        """Rows whose answer goes on."""
        return ~self.done & (self.count < self.limit)


@flax.struct.dataclass
class Request:
    """What one row is told when it is taken: scalars, named as in `Rows`, and the `row` [] int32."""

    row: Any
    limit: Any
    temperature: Any
    top_p: Any
    top_k: Any
    seed: Any


def empty_cache(config: SmolVLMConfig, rows: int, slots: int) -> KVCache:
    """A cache of `slots` for each of `rows`, which are filled each for itself."""
    cache = init_cache(config.text, config.compute, rows, slots)
    return dataclasses.replace(cache, index=jnp.zeros((rows,), jnp.int32))


def empty(config: SmolVLMConfig, rows: int, slots: int) -> Rows:
    """Free rows."""
    zeros, ones = jnp.zeros((rows,), jnp.int32), jnp.ones((rows,), jnp.float32)
    return Rows(
        cache=empty_cache(config, rows, slots),
        token=zeros,
        count=zeros,
        limit=zeros,
        done=jnp.zeros((rows,), bool),
        finite=jnp.ones((rows,), bool),
        temperature=ones * 0,
        top_p=ones,
        top_k=zeros + config.text.vocab_size,
        seed=jnp.zeros((rows,), jnp.uint32),
    )


def take(
    config: SmolVLMConfig,
    rows: Rows,
    prompt: KVCache,
    logits: Float[Array, "1 V"],
    request: Request,
    stop_ids: Int[Array, " X"],
) -> Rows:
    """Puts a prompt's keys and values [1, S', …] into a row and chooses its first token from `logits`.

    Slots of the prompt's cache beyond the rows' are left out; the caller sees to it that they are empty.
    """
    row, slots = request.row, rows.cache.num_slots
    kept = min(slots, prompt.num_slots)
    axis = _slot_axis(config)

    def put(into: Array, new: Array) -> Array:
        start = [jnp.zeros((), jnp.int32)] * into.ndim
        start[axis - 1] = row
        return jax.lax.dynamic_update_slice(into, jax.lax.slice_in_dim(new, 0, kept, axis=axis), start)

    valid = jnp.pad(prompt.valid[0, :kept], (0, slots - kept))
    k, v = jax.tree.map(put, (rows.cache.k, rows.cache.v), (prompt.k, prompt.v))
    cache = dataclasses.replace(
        rows.cache,
        k=k,
        v=v,
        valid=rows.cache.valid.at[row].set(valid),
        index=rows.cache.index.at[row].set(prompt.index[0]),
    )
    told = {name: getattr(request, name) for name in ("limit", "temperature", "top_p", "top_k", "seed")}
    one = jax.tree.map(lambda value: value[None], told)
    token = _choose(
        logits,
        jnp.zeros((1,), jnp.int32),
        one["temperature"],
        one["top_p"],
        one["top_k"],
        one["seed"],
        jnp.ones((1,), bool),
    )[0]
    fresh = {
        **told,
        "token": token,
        "count": jnp.int32(1),
        "done": jnp.isin(token, stop_ids),
        "finite": jnp.isfinite(jnp.max(logits)),
    }
    own = {name: getattr(rows, name).at[row].set(value) for name, value in fresh.items()}
    return Rows(cache=cache, **own)


def decode(
    config: SmolVLMConfig,
    stride: int,
    params: Any,
    rows: Rows,
    steps: Int[Array, ""],
    eager: Bool[Array, ""],
    stop_ids: Int[Array, " X"],
) -> tuple[Rows, Int[Array, "R M"], Int[Array, ""]]:
    """Takes every running row up to `steps` tokens further.

    Args:
      config: static.
      stride: static; M, the most tokens of one call.
      params: of the model.
      rows: the batch, which has a free slot for every token to come.
      steps: at most `stride`.
      eager: come back as soon as a row has ended.
      stop_ids: tokens that end an answer.

    Returns:
      The batch, the new tokens of each row (as many as its `count` has grown by; then zeros), and how many passes
      through the model were made.
    """
    began, R = rows.running(), rows.token.shape[0]

    def more(carry: tuple[Rows, Array, Array]) -> Array:
        rows, _, step = carry
        running = rows.running()
        ended = eager & (began & ~running).any()
        return (step < steps) & running.any() & ~ended

    def advance(carry: tuple[Rows, Array, Array]) -> tuple[Rows, Array, Array]:
        rows, tokens, step = carry
        # What is made of weights alone would be made once, before the loop, and kept beside them.
        own, fed = jax.lax.optimization_barrier((params, rows.token))
        running, index = rows.running(), rows.cache.index
        # A row that does not run writes into a slot which stays invalid, wherever it stands.
        cache = dataclasses.replace(rows.cache, index=jnp.minimum(index, rows.cache.num_slots - 1))
        out = forward(
            config, own, {"input_ids": fed[:, None], "attention_mask": running[:, None]}, cache, "last"
        )
        assert out.cache is not None
        logits = out.logits[:, -1]
        token = _choose(logits, rows.count, rows.temperature, rows.top_p, rows.top_k, rows.seed, running)
        token = jnp.where(running, token, 0)
        sound = jnp.isfinite(jnp.max(logits, axis=-1)) | ~running
        rows = dataclasses.replace(
            rows,
            cache=dataclasses.replace(out.cache, index=index + running),
            token=jnp.where(running, token, rows.token),
            count=rows.count + running,
            done=rows.done | (running & jnp.isin(token, stop_ids)),
            finite=rows.finite & sound,
        )
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return rows, tokens, step + 1

    none = jnp.zeros((R, stride), jnp.int32)
    return jax.lax.while_loop(more, advance, (rows, none, jnp.zeros((), jnp.int32)))


def resize(config: SmolVLMConfig, slots: int, rows: Rows) -> Rows:
    """The same rows with more slots, or with fewer, the last ones being cut off."""
    more = max(0, slots - rows.cache.num_slots)

    def fit(leaf: Array, axis: int) -> Array:
        widths = [(0, more if axis == place else 0) for place in range(leaf.ndim)]
        return jax.lax.slice_in_dim(jnp.pad(leaf, widths), 0, slots, axis=axis)

    k, v = jax.tree.map(lambda leaf: fit(leaf, _slot_axis(config)), (rows.cache.k, rows.cache.v))
    return dataclasses.replace(
        rows, cache=dataclasses.replace(rows.cache, k=k, v=v, valid=fit(rows.cache.valid, 1))
    )


def cut(config: SmolVLMConfig, size: int, cache: KVCache, start: Int[Array, ""]) -> Any:
    """Keys and values of `size` slots from `start` on: what `paste` takes."""
    axis = _slot_axis(config)
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=axis), (cache.k, cache.v)
    )


def paste(
    config: SmolVLMConfig, cache: KVCache, part: Any, start: Int[Array, ""], count: Int[Array, ""]
) -> KVCache:
    """A cache [1, S, …] that is filled up to `start`, with the first `count` tokens of `part` behind."""
    axis = _slot_axis(config)
    k, v = jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, axis=axis),
        (cache.k, cache.v),
        part,
    )
    end = start + count
    valid = (jnp.arange(cache.num_slots) < end)[None]
    return dataclasses.replace(cache, k=k, v=v, valid=valid, index=end[None])


def _choose(
    logits: Float[Array, "R V"],
    count: Int[Array, " R"],
    temperature: Float[Array, " R"],
    top_p: Float[Array, " R"],
    top_k: Int[Array, " R"],
    seed: Array,
    running: Bool[Array, " R"],
) -> Int[Array, " R"]:
    """The best token of greedy rows; for others a draw by a key of the row's seed and the token's number alone.

    The key is that of `smoljax.generation.programs` for a row that is alone, so the draws are the same, too.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(row: Array, at: Array, heat: Array, share: Array, most: Array, own: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(own), at), 0)
        return sampling.sample(row[None], key[None], jnp.where(heat > 0, heat, 1.0), most, share)[0]

    def drawn() -> Array:
        found = jax.vmap(draw)(logits, count, temperature, top_p, top_k, seed)
        return jnp.where(temperature > 0, found, best)

    # Sorting a vocabulary costs more than the product that scored it: only where some row draws.
    return jax.lax.cond((running & (temperature > 0)).any(), drawn, lambda: best)


def _slot_axis(config: SmolVLMConfig) -> int:
    """Where a cache's leaves have their slots; the rows are one axis before."""
    return 2 if config.compute.scan_layers else 1
