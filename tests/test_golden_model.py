"""The network against logits that the PyTorch reference gave for the same weights; needs no PyTorch.

The full comparison, at 256M geometry too, is experiments/parity/model_reference.py.
"""

import jax
import numpy as np
import pytest

from experiments.parity.make_model_golden import COLUMNS, GOLDEN, NEW_TOKENS, golden_cases, seeded_params
from experiments.parity.model_reference import our_outputs, random_batch


@pytest.mark.parametrize("name", golden_cases())
def test_logits_and_greedy_ids_of_the_reference(name):
    case, golden = golden_cases()[name], np.load(GOLDEN)
    batch, params = random_batch(case), jax.tree.map(jax.numpy.asarray, seeded_params(case))
    logits, ids = our_outputs(case.config, params, batch, NEW_TOKENS)
    real = batch["attention_mask"]
    error = np.abs(logits[:, :, :COLUMNS] - golden[f"{name}/logits"])[real].max()
    assert error <= 1e-4, f"largest absolute error {error:.1e}"
    assert ids == golden[f"{name}/greedy"].tolist()
