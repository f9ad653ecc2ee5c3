"""SmolLM2-135M's real weights: logits and greedy ids against transformers' own GGUF loading."""

import pytest

from experiments.parity.gguf_reference import compare, passed
from smoljax.errors import SmoljaxError
from smoljax.hub import download_gguf


@pytest.mark.parity
@pytest.mark.slow
def test_smollm2(tmp_path):
    for module in ("torch", "transformers", "accelerate"):
        pytest.importorskip(module, reason=f"needs {module}; install with `make reference`")
    try:
        gguf = download_gguf("smollm2-135m", tmp_path)
    except SmoljaxError as error:
        pytest.skip(str(error))
    result = compare(gguf)
    assert passed(result), result
