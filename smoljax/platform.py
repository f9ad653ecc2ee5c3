"""Which platform jax should look for on this machine; to be asked before jax is first used."""

import glob
import importlib.util
import os


def skip_absent_tpu() -> None:
    """Where libtpu is installed but no TPU is there, jax goes to the CPU at once.

    It would find that out by itself, after seconds of waiting for a metadata server and with errors of libtpu's own.
    A platform that the user chose (`JAX_PLATFORMS`), a TPU and a GPU (NVIDIA's, AMD's, that of Windows) are left
    alone.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    devices = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
    if any(glob.glob(pattern) for pattern in devices):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
