"""The single products and attentions behind docs/speed.md: which form XLA's CPU backend does well, and by how much.

    python -m experiments.benchmarks.products [--json] [--out docs/benchmarks/products.json]

Sizes are those of SmolVLM-256M: 425 MB of decoder matrices as 30 layers' gate|up, down and so on would be read, here 60
equal ones of [3072, 576]; a tile's attention (1024 patches, 12 heads of 64); a prompt's (512 tokens, 9 heads on 3
key-value heads); a head's scores [1024, 1024] against 64 columns. Medians of `--repeats` calls in milliseconds; every
form is one compiled loop, so that what is counted is the machine's work and not Python's.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from smoljax.bench.limits import matrix_gflops, median_seconds, memory_gb_s
from smoljax.nn.quantised import quantise
from smoljax.ops.attention import attention, causal_mask
from smoljax.ops.attention_by_heads import attention_by_heads
from smoljax.ops.products import bfloat16_product, dot, int8_product

Form = tuple[str, Callable[..., Any], tuple[Any, ...]]
LAYERS, OUT, IN = 60, 3072, 576


def random(*shape: int) -> jax.Array:
    """Numbers of a normal distribution, the same at every call."""
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def over_layers(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loop over matrices apart, as a step of decoding has them: results are added up."""

    def run(x: jax.Array, *layers: Any) -> jax.Array:
        total = jnp.zeros((len(x), OUT))
        for layer in layers:
            total = total + product(x + total[:, :IN] * 1e-9, layer)
        return total

    return run


def weight_forms() -> list[Form]:
    """Products of few rows with 425 MB of matrices."""
    first = [random(OUT, IN) + i for i in range(LAYERS)]
    turned = [jnp.asarray(matrix.T) for matrix in first]
    halves = [matrix.astype(jnp.bfloat16) for matrix in first]
    rounded = [quantise({"kernel": matrix}, "int8") for matrix in turned]
    rounded_first = [{**one, "int8": jnp.asarray(one["int8"].T)} for one in rounded]
    forms: list[Form] = []
    for rows in (1, 2, 8):
        x = random(rows, IN)
        last = over_layers(lambda x, w: dot(x, w, dtype=jnp.float32))
        name = f"{rows} row{'s' * (rows > 1)}, float32, outputs"
        forms.append((f"{name} last", last, (x, *turned)))
        turn = over_layers(lambda x, w: dot(x, w, transposed=True, dtype=jnp.float32))
        forms.append((f"{name} first", turn, (x, *first)))
    x = random(1, IN)
    half = over_layers(lambda x, w: bfloat16_product(x, w, transposed=True))
    forms.append(("1 row in two parts, bfloat16, outputs first", half, (x, *halves)))
    for name, layers, transposed in (("last", rounded, False), ("first", rounded_first, True)):

        def few(x: Any, w: Any, transposed: bool = transposed) -> jax.Array:
            return int8_product(x, w["int8"], w["scale"], transposed=transposed)

        forms.append((f"1 row in two parts, int8, outputs {name}", over_layers(few), (x, *layers)))
    return forms


def attention_forms() -> list[Form]:
    """A tile's attention and a prompt's, and a training step's backward pass through a tile's."""
    tile = tuple(random(1, 1024, 12, 64) + i for i in range(3))
    q, k, v = random(1, 512, 9, 64), random(1, 512, 3, 64), random(1, 512, 3, 64)
    mask = causal_mask(jnp.ones((1, 512), bool), jnp.arange(512)[None])

    def backward(mix: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda *x: mix(*x).sum(), (0, 1, 2))

    def plain(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, None)[0]

    def by_heads(q: Any, k: Any, v: Any) -> Any:
        return attention_by_heads(q, k, v, None)

    return [
        ("a tile, all heads at once", plain, tile),
        ("a tile, head by head", by_heads, tile),
        ("a tile, all heads at once, with the backward pass", backward(plain), tile),
        ("a tile, head by head, with the backward pass", backward(by_heads), tile),
        ("512 tokens, head by head, all keys", partial(attention_by_heads, causal=False), (q, k, v, mask)),
        ("512 tokens, head by head, no key ahead", partial(attention_by_heads, causal=True), (q, k, v, mask)),
    ]


def head_forms() -> list[Form]:
    """Twelve heads' products of scores [T, S], in the ways that a backward pass may write them."""
    scores, x = random(1024, 1024), random(12, 1024, 64)

    def each(spec: str) -> Callable[..., Any]:
        return lambda scores, x: jax.lax.map(lambda one: jnp.einsum(spec, scores, one), x)

    return [
        ("12 heads, scores·x", each("ts,sh->th"), (scores, x)),
        ("12 heads, scoresᵀ·x", each("ts,th->sh"), (scores, x)),
        ("12 heads, xᵀ·scores, x turned before the loop", each("ts,ht->hs"), (scores, x.swapaxes(1, 2))),
    ]


def measure(repeats: int) -> dict[str, Any]:
    """Milliseconds of every form, and the machine's limits."""
    found: dict[str, float] = {}
    for forms in (weight_forms, attention_forms, head_forms):
        for name, function, args in forms():
            found[name] = round(1e3 * median_seconds(jax.jit(function), args, repeats), 2)
    limits = {"gflops": round(matrix_gflops()), "gb_s": round(memory_gb_s(), 1)}
    return {"cores": os.cpu_count(), "machine": platform.machine(), "limits": limits, "ms": found}


def markdown(result: dict[str, Any]) -> str:
    """A table."""
    rows = [f"| {name} | {value:.1f} ms |" for name, value in result["ms"].items()]
    return "\n".join(["| what | a call |", "|---|---|", *rows])


def main() -> None:
    """Measures, prints, and writes `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each form")
    parser.add_argument("--out", type=Path, help="write the result as JSON here too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.repeats)
    if args.out:
        args.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result) if args.json else markdown(result))


if __name__ == "__main__":
    main()
