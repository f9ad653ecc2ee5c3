"""The TPU's attention kernel, interpreted on the CPU, against the plain products; and which one is taken when."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoljax
from smoljax.ops import attention as att
from smoljax.ops.flash import splash_attention

RNG = np.random.default_rng(0)


def rand(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


CASES = {
    "causal, packed, GQA": {"T": 256, "heads": (4, 2), "H": 64, "causal": True, "segments": True},
    "padded to whole lanes": {"T": 200, "heads": (2, 2), "H": 64, "causal": True, "segments": True},
    "a tile of 27 × 27 patches": {"T": 729, "heads": (1, 1), "H": 72, "causal": False, "segments": False},
}

MARKS = ([], [pytest.mark.slow], [pytest.mark.slow])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks) for name, marks in zip(CASES, MARKS, strict=True)]
)
def test_the_kernel_mixes_what_plain_attention_mixes(name):
    case = CASES[name]
    T, (N, K), H = case["T"], case["heads"], case["H"]
    q, k, v, out = rand(2, T, N, H), rand(2, T, K, H), rand(2, T, K, H), rand(2, T, N, H)
    ids = None
    real = jnp.ones((2, T), bool)
    mask = None
    if case["segments"]:
        ids = jnp.asarray(np.sort(RNG.integers(1, 4, (2, T)), axis=1), jnp.int32)
        ids = ids.at[1, T - 30 :].set(0)  # padding
        real = ids > 0
        mask = att.causal_mask(real, jnp.arange(T)[None], ids)

    def by_kernel(q, k, v):
        return jnp.where(
            real[..., None, None],
            splash_attention(q, k, v, ids, causal=case["causal"], interpret=True),
            0,
        )

    def plainly(q, k, v):
        return jnp.where(real[..., None, None], att.attention(q, k, v, mask)[0], 0)

    np.testing.assert_allclose(by_kernel(q, k, v), plainly(q, k, v), atol=3e-6)
    gradients = [
        jax.grad(lambda *x, f=f: jnp.sum(f(*x) * out), argnums=(0, 1, 2))(q, k, v)
        for f in (by_kernel, plainly)
    ]
    for found, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-5)


def test_the_platform_decides():
    assert att.kernel_for("auto", jnp.float32) == "heads"  # on this CPU
    assert att.kernel_for("plain", jnp.float32) is None
    q = rand(1, 8, 2, 4)
    np.testing.assert_array_equal(att.attend(q, q, q, None), att.attention(q, q, q, None)[0])


ON_A_MESH = """
import json
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from smoljax.ops import attention as att
from smoljax.ops.flash import splash_attention
from smoljax.ops.partition import partitioned
from smoljax.training.config import MeshConfig
from smoljax.training.sharding import make_mesh, rules_of
r = np.random.default_rng(0)
q, k, v = (jnp.asarray(r.standard_normal((4, 512, n, 64)), jnp.float32) for n in (4, 2, 2))
ids = jnp.asarray(np.sort(r.integers(1, 4, (4, 512)), axis=1), jnp.int32)
wanted = att.attention(q, k, v, att.causal_mask(ids > 0, jnp.arange(512)[None], ids))[0]
mesh = MeshConfig(data=2, sequence=2, tensor=2)
partition = rules_of(mesh).partition(make_mesh(mesh))

@jax.jit
def run(q, k, v, ids):
    with partitioned(partition):
        return splash_attention(q, k, v, ids, causal=True, interpret=True)

print(json.dumps(float(jnp.abs(run(q, k, v, ids) - wanted).max())))
"""


@pytest.mark.slow
def test_on_a_mesh_every_device_mixes_its_share():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(smoljax.__file__).parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 3e-6
