"""The grid: fair by construction, rows that compare as they should, a report from stored rows alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.embedding_sharing import pictures, rows, run, same
from experiments.embedding_sharing.dense import BASE
from experiments.embedding_sharing.variants import VARIANTS, known
from experiments.statistics import paired_ratio
from smoljax.data.scenes.vocabulary import COLOURS, SHAPES
from smoljax.errors import SmoljaxError, UsageError
from smoljax.nn.smolvlm import abstract_params, count_params
from smoljax.training.config_file import as_json, read_config

ROOT = Path(__file__).parent.parent.parent
SCENES = ROOT / "experiments" / "embedding_sharing" / "scenes.py"


def test_variants_change_what_they_name_and_nothing_else():
    base = as_json(read_config(SCENES))
    for name, variant in VARIANTS.items():
        config = as_json(read_config(SCENES, [f"sharing={name}"]))
        for tree in (base, config):
            for data in (tree["data"], tree["validation"]):  # room for what a variant has more or less
                data.pop("sequence_length", None)
                data["sources"][0]["options"].pop("contrastive", None)
        differing = {key for key in base if base[key] != config[key]} - {"name"}
        allowed = {"model"} | ({"objectives"} if variant.objectives else set())
        assert differing <= allowed, name
        if name != "linear":
            assert differing, name


def test_parameters_are_matched_where_a_variant_allows():
    base = count_params(abstract_params(BASE))[1]
    for name, variant in known().items():
        share = count_params(abstract_params(variant.architecture(BASE)))[1] / base
        assert 0.94 < share < 1.15, name


def test_seeds_differ_and_unknown_names_are_refused():
    zero, one = (read_config(SCENES, ["sharing=mlp", f"seed={seed}"]) for seed in (0, 1))
    assert (zero.seed, one.seed) == (0, 1)
    assert zero.model.start != one.model.start
    zero, one = {"run": as_json(zero)}, {"run": as_json(one)}
    assert run.config_hash(zero) != run.config_hash(one)
    assert run.config_hash(zero) == run.config_hash({"run": {**zero["run"], "log_every": 99}})
    assert run.config_hash(zero) != run.config_hash({**zero, "before": {"steps": 9}})
    with pytest.raises(UsageError, match="no variant 'mpl'"):
        read_config(SCENES, ["sharing=mpl"])


def test_tokens_know_the_object_they_show():
    cells = np.zeros((12, 12), int)
    cells[:4, :4] = 1  # four tokens of 2×2 cells, wholly
    cells[6, 6:8] = 2  # half of one token
    cells[10, 0] = 3  # a quarter of one: too little
    found = pictures.token_objects(cells, 6).reshape(6, 6)
    assert (found[:2, :2] == 0).all()
    assert found[3, 3] == 1
    assert (found == pictures.NOTHING).sum() == 36 - 5
    assert (
        pictures.token_objects(cells, 8).reshape(8, 8)[:2, :2] == 0
    ).all()  # a grid that 12 is no multiple of
    some = pictures.pictures("test", 3)
    objects = some.objects(6)
    shapes, colours = some.names(objects)
    assert objects.shape == (3, 36)
    assert ((shapes == -1) == (objects == -1)).all()
    row, place = np.argwhere(objects != -1)[0]
    thing = some.scenes[row].layout.things[objects[row, place]]
    assert (SHAPES[shapes[row, place]], COLOURS[colours[row, place]]) == (thing.shape, thing.colour)


def row(variant, seed, right, *, layers=2, family="connector"):
    """A stored row with a given number of right answers by picture, of ten asked."""
    share = sum(right) / (10 * len(right))
    kinds = ("existence", "count", "colour", "shape", "size", "texture", "comparison", "relation", "locate")
    one = {
        "accuracy": share,
        "accuracy_of_half": share,
        "by_kind": dict.fromkeys(kinds, share),
        "caption_loss": 1.0 + seed,
    }
    probe = {"accuracy": 0.5, "majority": 0.2, "n": 9}
    lens = {"top1": 0.3, "top1_null": 0.1, "top5": 0.6, "top5_null": 0.2}
    calibrated = {"value": 0.4, "null_mean": 0.0, "null_high": 0.1, "p": 0.02}
    layer = {
        "gap": {"raw": 1.0, "relative": 0.5, "unit": 0.7},
        "norms_image": [1, 2, 3, 4, 5],
        "norms_text": [1, 1, 1, 1, 1],
        "anisotropy_image": 0.1,
        "anisotropy_text": 0.1,
        "rank_image": 5.0,
        "rank_text": 6.0,
        "frechet": 1.0,
        "energy": 0.3,
        "separability": 0.99,
        "cka": calibrated,
        "knn": calibrated,
        "retrieval": {"image_to_text_r1": 0.1},
        "lens": {"input": lens, "logit": lens, "contextual": lens},
        "probes": dict.fromkeys(("shape", "colour", "row", "column"), probe),
    }
    words = ["red"] * 36
    space = {
        "layers": [{**layer, "layer": number} for number in range(layers)],
        "nearest_word_entropy": 2.0,
        "tie": 2.0,
        "metrics": {},
        "shown": [{"picture": index, "input": words, "logit": words} for index in range(2)],
        "map": {
            "image": [[0, 1], [1, 0]],
            "colour": [0, 1],
            "shape": [0, 1],
            "words": [[2, 2]],
            "word_ids": [4],
            "explained": [0.5, 0.2],
        },
    }
    ways = {"input": 0.1, "image": 0.0, "output": 0.2}
    return {
        "variant": variant,
        "family": family,
        "about": f"about {variant}",
        "seed": seed,
        "config_hash": "0" * 12,
        "config": {},
        "training": {"steps": 5, "seconds": 60.0},
        "curve": {"train": [[1, 3.0]], "validation": [[1, 2.0 + seed], [2, 1.0 + seed]]},
        "measured": {
            "pictures": len(right),
            "seconds": 3.0,
            "task": {
                "none": {**one, "by_picture": [[got, 10, 5.0, 4] for got in right]},
                "swap": one,
                "shuffle": one,
                "average": one,
            },
            "space": space,
            "gradients": {"norm": ways, "cosine": 0.1, "by_class": {}},
            "cost": {"parameters": 100, "flops": 1e9, "pictures_a_second": 7.0},
        },
        "versions": {"jax": "0", "date": "2026-01-01"},
    }


def write_rows(folder, *made):
    folder.mkdir(parents=True, exist_ok=True)
    for item in made:
        (folder / f"{item['variant']}-{item['seed']}.json").write_text(json.dumps(item))
    return folder


def grid(folder):
    """Better by two of ten on every picture and seed; now better, now worse; and the control."""
    base = [3, 4, 5, 6]
    made = [row("random", 0, [1, 1, 1, 1], family="control")]
    for seed in range(3):
        made.append(row("linear", seed, [value + (seed == 1) for value in base]))
        made.append(row("better", seed, [value + 2 + (seed == 1) for value in base]))
        made.append(row("unclear", seed, [value + (1, -1, 0)[seed] for value in base], family="words"))
    return write_rows(folder, *made)


def test_differences_are_paired_by_seed_and_by_picture(tmp_path):
    found = rows.read_rows(grid(tmp_path))
    assert list(found) == ["linear", "better", "unclear", "random"]
    better = rows.accuracy_difference(found["linear"], found["better"])
    assert better["mean"] == pytest.approx(0.2)
    # The same gain on every picture and seed: nothing is left to chance, in either interval.
    np.testing.assert_allclose(better["by_seed"], [0.2, 0.2])
    np.testing.assert_allclose(better["by_picture"], [0.2, 0.2])
    assert rows.differs(better)
    unclear = rows.accuracy_difference(found["linear"], found["unclear"])
    assert unclear["by_seed"][0] < 0 < unclear["by_seed"][1]
    assert not rows.differs(unclear)
    one = rows.accuracy_difference(found["linear"], {0: found["better"][0]})
    assert one["by_seed"] is None
    assert not rows.differs(one)  # one seed proves nothing


def test_paired_bootstrap_covers_what_pictures_vary():
    rng = np.random.default_rng(0)
    asked = np.full((2, 400), 10.0)
    one = rng.binomial(10, 0.4, (2, 400))
    other = np.minimum(10, one + rng.binomial(1, 0.5, (2, 400)))
    low, high = paired_ratio(np.stack([one, asked], -1), np.stack([other, asked], -1))
    assert low < 0.05 < high
    assert high - low < 0.01


def test_a_report_is_drawn_from_rows_alone(tmp_path):
    pytest.importorskip("markdown")
    from experiments.embedding_sharing.report import write_report

    text = write_report({"scenes": grid(tmp_path / "rows"), "words": tmp_path / "none"}, tmp_path / "docs")
    assert "4 variants" in text
    page = (tmp_path / "docs" / "embedding_sharing.md").read_text()
    assert "better than *linear*: *better* (+20.0)" in page
    assert "Not to be told apart from it here: *unclear*" in page
    assert "**better**" in page
    for name in ("grid", "map", "gap", "lens", "training"):
        assert (tmp_path / "docs" / "embedding_sharing" / "scenes" / f"{name}.png").stat().st_size > 2000
        assert f"embedding_sharing/scenes/{name}.png" in page
    html = (tmp_path / "docs" / "embedding_sharing" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == page.count(".png)")
    assert 'src="embedding' not in html
    again = write_report({"scenes": tmp_path / "rows"}, tmp_path / "docs")
    assert again == text
    assert (tmp_path / "docs" / "embedding_sharing.md").read_text() == page


def test_a_report_names_variants_whose_tokens_are_all_alike(tmp_path):
    from experiments.embedding_sharing.report import conclusions

    def told(*perplexities):
        made = [row("linear", seed, [3, 4, 5, 6]) for seed in range(2)]
        for seed, perplexity in enumerate(perplexities):
            made.append(row("nearest_word", seed, [1, 2, 2, 1]))
            used = {"perplexity": perplexity, "token_perplexity": 1.0, "dead": 0.9}
            made[-1]["measured"]["space"]["codes"] = used
        found = rows.read_rows(write_rows(tmp_path / str(perplexities), *made))
        differences = {"nearest_word": rows.accuracy_difference(found["linear"], found["nearest_word"])}
        return "*nearest_word*: all image tokens took the same row" in conclusions(found, differences)

    assert told(1.0, 1.2)
    assert not told(1.0, 3.0)


def test_a_grid_without_its_base_is_refused(tmp_path):
    with pytest.raises(SmoljaxError, match="no row of 'linear'"):
        rows.read_rows(write_rows(tmp_path, row("mlp", 0, [1])))


def test_two_rows_are_compared_number_by_number(tmp_path, monkeypatch, capsys):
    one, other = row("linear", 0, [3, 4]), row("linear", 0, [3, 4])
    other["measured"]["seconds"] = 99.0
    other["measured"]["cost"]["pictures_a_second"] = 1.0
    count, unequal = same.differences(one, other)
    assert count > 50
    assert not unequal
    other["measured"]["space"]["layers"][1]["rank_image"] = 5.0000000000001
    assert len(same.differences(one, other)[1]) == 1
    for name, item in (("a", one), ("b", other)):
        (tmp_path / name).write_text(json.dumps(item))
    monkeypatch.setattr(sys, "argv", ["same", str(tmp_path / "a"), str(tmp_path / "b")])
    assert same.main() == 1
    assert "rank_image: 5.0 and 5.0000000000001" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_smoke_grid_trains_measures_and_reports(tmp_path, monkeypatch):
    """Two variants and the control, a few steps each, by the command that makes the real grid."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # these programs run long enough to be compiled well
    command = [sys.executable, "-m", "experiments.embedding_sharing.run", "--seeds", "1", "--pictures", "16"]
    command += ["--variants", "linear", "word_mixture", "--docs", str(tmp_path / "docs")]
    command += ["--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "rows")]
    for item in ("steps=4", "validate_every=2", "validation_batches=1", "log_every=1"):
        command += ["--set", item, "--set-dense", item]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]
    found = rows.read_rows(tmp_path / "rows")
    assert list(found) == ["linear", "word_mixture", "random"]
    assert len(found["linear"][0]["curve"]["validation"]) == 2
    assert "codes" in found["word_mixture"][0]["measured"]["space"]
    assert (tmp_path / "docs" / "embedding_sharing" / "report.html").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "smoljax train" not in again.stderr  # nothing is done twice
