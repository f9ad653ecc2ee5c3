"""Checksums beside checkpoints: written when one is whole, dropped with it, and they find what has changed."""

import time

import pytest

from smoljax.training.seals import Sealer, damage, seal


@pytest.fixture
def checkpoints(tmp_path):
    """Two whole checkpoints, and one that is being written."""
    folder = tmp_path / "checkpoints"
    for name in ("2", "4", "6.orbax-checkpoint-tmp"):
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "chunk").write_bytes(name.encode() * 100)
        (folder / name / "notes").write_text("as written")
    return folder


def test_what_is_whole_is_sealed_by_itself(checkpoints):
    sealer = Sealer(checkpoints)
    sealer.start()
    sums = checkpoints.parent / "checksums"
    deadline = time.monotonic() + 30
    while not (sums / "4" / "0-of-1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (checkpoints / "6.orbax-checkpoint-tmp").rename(checkpoints / "6")
    sealer.settle()
    assert sorted(path.name for path in sums.iterdir()) == ["2", "4", "6"]
    assert all(damage(checkpoints, step) is None for step in (2, 4, 6))


def test_a_changed_bit_is_found_and_notes_may_change(checkpoints):
    seal(checkpoints)
    (checkpoints / "4" / "notes").write_text("committed")
    assert damage(checkpoints, 4) is None
    chunk = checkpoints / "4" / "state" / "chunk"
    content = bytearray(chunk.read_bytes())
    content[50] ^= 1
    chunk.write_bytes(bytes(content))
    assert "state/chunk has not the content" in (damage(checkpoints, 4) or "")
    seal(checkpoints)  # what is damaged is not sealed anew
    assert damage(checkpoints, 4) is not None
    chunk.unlink()
    assert "state/chunk is missing" in (damage(checkpoints, 4) or "")


def test_sums_go_with_their_checkpoint(checkpoints):
    seal(checkpoints)
    for file in (checkpoints / "2").rglob("*"):
        if file.is_file():
            file.unlink()
    (checkpoints / "2" / "state").rmdir()
    (checkpoints / "2").rmdir()
    seal(checkpoints)
    assert [path.name for path in (checkpoints.parent / "checksums").iterdir()] == ["4"]
