"""A short run of experiments/parity/processor_reference.py; set SMOLJAX_PROCESSORS for the released files."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from smoljax.processing.testing import tiny_processor
from smoljax.processing.video import load_video, sample_indices

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("num2words")

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parents[2] / "experiments" / "parity" / "processor_reference.py"
    spec = importlib.util.spec_from_file_location("processor_reference", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_and_check(reference, processors, n):
    done = reference.run(processors, n=n, batches=1, largest=700, seed=1, log=lambda line: None)
    assert done
    for setting in done:
        assert setting.passed, setting
        assert setting.cases == n + 2
        assert setting.largest_error == 0


def test_random_pictures_and_prompts_with_the_toy_vocabulary(reference):
    run_and_check(reference, None, 60)


def test_random_pictures_and_prompts_with_the_real_vocabulary(reference, smollm2, tmp_path):
    from experiments.parity.table import released_processors

    run_and_check(reference, released_processors(tmp_path), 15)


def test_a_video_file_is_read_as_the_reference_reads_it(tmp_path):
    pytest.importorskip("av")
    from test_video import write_mp4
    from transformers.video_utils import read_video_pyav

    config = tiny_processor().config.video
    assert config is not None
    write_mp4(tmp_path / "clip.mp4", 50, 10)
    want, metadata = read_video_pyav(
        str(tmp_path / "clip.mp4"),
        lambda metadata: np.array(
            sample_indices(metadata.total_num_frames, metadata.fps, metadata.duration, config)
        ),
    )
    got = load_video(tmp_path / "clip.mp4", config)
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in got.frames]), want)
    assert (got.timestamps, got.duration) == (metadata.timestamps, metadata.duration)
