"""The training step: one pure, compiled function from a state and a batch to the next state."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax

from smoljax.config import SmolVLMConfig
from smoljax.nn.smolvlm import SmolVLM
from smoljax.ops.partition import Partition, partitioned, platform
from smoljax.training.config import TrainConfig
from smoljax.training.objectives.table import Seen, count, needs_decoder, sums
from smoljax.training.optimizer import ema_update, global_norm, hold_frozen
from smoljax.training.products import trained_products


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps done.
      params: the model's parameters, and under "objectives" those of the objectives; float32.
      opt_state: optax's.
      ema: the moving average of `params`, None where it is off.
      rng: uint32 key data of the noise (`jax.random.key_data`).
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    rng: Any


def model_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own parameters, without the objectives'."""
    return {key: value for key, value in params.items() if key != "objectives"}


def look(
    config: SmolVLMConfig,
    params: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    decoder: bool = True,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> Seen:
    """One forward pass for the objectives: patches, hidden states, output table; no logits.

    Args:
      config: the model's.
      params: the model's.
      batch: of `smoljax.data`; `segment_ids` 0 is padding.
      decoder: False stops after the patch encoder.
      noise: NEFTune's alpha; the embeddings get uniform noise of ±alpha/√(T·D).
      key: of the noise.
    """

    def run(model: SmolVLM) -> Seen:
        words, head = model.tables()
        seen = Seen(None, None, words, head)
        features, shown = None, {}
        if config.vision is not None and batch["pixel_values"].shape[1]:
            seen = dataclasses.replace(seen, patches=model.encode_patches(batch["pixel_values"])[0])
            if decoder:
                features, shown = model.connect(seen.patches)
        if not decoder:
            return seen
        ids, segments = batch["input_ids"], batch["segment_ids"]
        added = None
        if noise:
            assert key is not None
            shape = (*ids.shape, config.text.hidden_size)
            size = noise * (shape[1] * shape[2]) ** -0.5
            added = size * jax.random.uniform(key, shape, minval=-1, maxval=1)
        names = ("input_ids", "tile_mask", "positions", "branch_ids")  # a text-only batch has no tiles
        inputs = {name: batch[name] for name in names if name in batch}
        inputs |= {"attention_mask": segments > 0, "segment_ids": segments}
        x, hidden, _, _ = model.decode(inputs, features, None, added)
        if features is not None and config.sharing.image_attention == "cross":
            # They take no seat in the decoder; losses on the shared space look at them all the same.
            x = model.embedding.seat(x, ids, features, batch["tile_mask"])
        is_image = ids == config.image_token_id if features is not None else jnp.zeros(ids.shape, bool)
        return dataclasses.replace(
            seen, hidden=hidden, embeddings=x, is_image=is_image, residual=shown.get("residual")
        )

    # The way that suits XLA on a CPU; elsewhere the plain product is as good and remat policies see it.
    with trained_products() if platform() == "cpu" else contextlib.nullcontext():
        seen = SmolVLM(config).apply({"params": params}, method=run)  # type: ignore[arg-type]
    return cast(Seen, seen)


def loss_function(
    config: TrainConfig, model: SmolVLMConfig, teacher: SmolVLMConfig | None
) -> Callable[..., tuple[jax.Array, dict[str, Any]]]:
    """(params, batch, counts, key, teacher's params) → the weighted sum, and measures as (sum, count) pairs."""
    decoder = needs_decoder(config.objectives)

    def loss(
        params: Any, batch: Any, counts: Mapping[str, jax.Array], key: jax.Array | None, taught: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        params = hold_frozen(config.optimizer, params)
        seen = look(
            model,
            model_params(params),
            batch,
            decoder=decoder,
            noise=config.noise if key is not None else 0.0,
            key=key,
        )
        if teacher is not None:
            guide = look(teacher, jax.lax.stop_gradient(taught), batch)
            seen = dataclasses.replace(seen, teacher=guide)
        total, measures = jnp.float32(0), {}
        for objective in config.objectives:
            own = params.get("objectives", {}).get(objective.name, {})
            part, found = sums(objective, own, seen, batch)
            part = part / counts[objective.name]
            measures[f"loss_{objective.name}"] = (part, jnp.float32(1))
            measures |= found
            total += objective.weight * part
        return total, measures

    return loss


def counts_of(config: TrainConfig, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Each objective's divisor over the whole batch."""
    return {objective.name: count(objective, batch) for objective in config.objectives}


# By itself XLA takes products with gathered weights apart into as many as there are chips, each behind its own permute,
# where these are 32 or fewer; each then reads and writes the whole result. On v5e:4x4 the compiled step of 500M moves
# 1.86 s worth of main memory so, and 0.65 s without.
_TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# By itself XLA's CPU backend orders a program so that operations can run at once: it clears the buffers of all
# gradients before the backward pass. The step of 256M in this order has temporaries of 1.21 GB in place of 1.34 GB.
_CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def jit_step(
    config: TrainConfig,
    model: SmolVLMConfig,
    optimizer: optax.GradientTransformation,
    like: TrainState,
    teacher: SmolVLMConfig | None,
    partition: Partition,
) -> Any:
    """`make_step` jitted as a run has it, the state donated and kept where `like` lies."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    options = _TPU_OPTIONS if partition.platform == "tpu" else None
    if partition.platform == "cpu" and model.compute.remat != "none":  # memory is what counts
        options = _CPU_OPTIONS
    return jax.jit(
        make_step(config, model, optimizer, teacher, partition),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=options,
    )


def make_step(
    config: TrainConfig,
    model: SmolVLMConfig,
    optimizer: optax.GradientTransformation,
    teacher: SmolVLMConfig | None = None,
    partition: Partition | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The step (state, batch, teacher's params) → (state, measures); to be jitted with the state donated.

    With accumulation the batch is split into micro-batches whose gradients are added; sums are divided by the
    whole batch's counts, so the result is that of one large batch (contrastive negatives excepted: they come
    from the micro-batch). A step whose gradient is not finite leaves parameters and optimizer as they were.
    """
    gradient = jax.value_and_grad(loss_function(config, model, teacher), has_aux=True)
    splits = config.optimizer.accumulate

    def step(state: TrainState, batch: Any, taught: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = dict(batch)
        asked = batch.pop("stop", None)  # a host that wants to stop
        counts = counts_of(config, batch)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step) if config.noise else None
        if splits == 1:
            (loss, measures), grads = gradient(state.params, batch, counts, key, taught)
        else:
            loss, measures, grads = _accumulate(gradient, splits, state.params, batch, counts, key, taught)
        norm = global_norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)

        def apply(old: TrainState, grads: Any) -> TrainState:
            updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
            params = optax.apply_updates(old.params, updates)
            ema = None if old.ema is None else ema_update(old.ema, params, config.optimizer.ema)
            return TrainState(old.step, params, opt_state, ema, old.rng)

        # A branch and no selection: XLA writes a branch's result over the donated state; to select between old and
        # new it would copy parameters and moments first.
        new = jax.lax.cond(sound, apply, lambda old, _: old, state, grads)
        new = new.replace(step=state.step + 1)
        flat = {name: total / jnp.maximum(number, 1e-9) for name, (total, number) in measures.items()}
        stop = {} if asked is None else {"stop": asked.max()}
        return new, {"loss": loss, "grad_norm": norm, **flat, **stop}

    return placed(step, partition)


def make_validation(
    config: TrainConfig,
    model: SmolVLMConfig,
    teacher: SmolVLMConfig | None = None,
    partition: Partition | None = None,
) -> Callable[[Any, Any, Any], dict[str, tuple[jax.Array, jax.Array]]]:
    """(params, batch, teacher's params) → measures as (sum, count) pairs, to be added over batches."""
    loss = loss_function(config, model, teacher)

    def validate(params: Any, batch: Any, taught: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        counts = counts_of(config, batch)
        _, measures = loss(params, batch, counts, None, taught)
        for objective in config.objectives:
            name = f"loss_{objective.name}"
            measures[name] = (measures[name][0] * counts[objective.name], counts[objective.name])
        return measures

    return placed(validate, partition)


def placed(function: Callable[..., Any], partition: Partition | None) -> Callable[..., Any]:
    """The function, traced with its activations where the partition says."""

    @functools.wraps(function)
    def inside(*args: Any) -> Any:
        with partitioned(partition):
            return function(*args)

    return inside


def _accumulate(
    gradient: Any, splits: int, params: Any, batch: Any, counts: Any, key: Any, taught: Any
) -> tuple[jax.Array, Any, Any]:
    # Micro-batch k takes rows k, k + splits, …: each keeps rows of every device.
    parts = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, splits, *leaf.shape[1:]), 1, 0), batch)
    keys = None if key is None else jax.random.split(key, splits)

    def one(part: Any, own: Any) -> Any:
        (loss, measures), grads = gradient(params, part, counts, own, taught)
        return loss, measures, grads

    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], parts), None if keys is None else keys[0])
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*item)), None

    loss, measures, grads = jax.lax.scan(body, zero, (parts, keys))[0]
    measures = {
        name: (total, number / splits if name.startswith("loss_") else number)
        for name, (total, number) in measures.items()
    }
    return loss, measures, grads
