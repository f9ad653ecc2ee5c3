"""Every comparison with torch + transformers that takes seconds; the rest is run by the script itself."""

import pytest

from experiments.parity.model_reference import cases, compare

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", [name for name in cases() if name.startswith("tiny")])
def test_tiny(name):
    check(name, new_tokens=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["256m-1-tile", "256m-text-500"])
def test_full_geometry(name):
    check(name, new_tokens=16)


def check(name, new_tokens):
    pytest.importorskip("torch", reason="needs torch; install with `make reference`")
    pytest.importorskip("transformers", reason="needs transformers; install with `make reference`")
    row = compare(name, new_tokens)
    assert row["largest_error"] <= 1e-4
    assert row["greedy_equal"]
