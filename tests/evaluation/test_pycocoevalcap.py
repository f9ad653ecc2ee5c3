"""Captioning metrics against the package that the COCO challenge used."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from smoljax.evaluation.metrics.bleu import bleu, bleu_counts
from smoljax.evaluation.metrics.cider import cider_d
from smoljax.evaluation.metrics.rouge import rouge_l
from smoljax.evaluation.metrics.words import words

pytest.importorskip(
    "pycocoevalcap", reason="pip install pycocoevalcap: the reference of the captioning metrics"
)

CAPTIONS = """\
A man riding a wave on top of a surfboard.
Two dogs' bowls sit on the floor, next to a cat's bed!
It's a black-and-white photo of a 1950's car (a Ford).
A small striped red circle at the top left is left of a large blue square, on sand. The word "CAT" is printed.
The number "42" is printed; 3 objects: a star, a ring and a heart.
A sign that reads 'STOP' hangs on a pole...
the kitchen is clean & tidy, isn't it? It can't be 1,000 years old
A T-shirt costs $9.99 - that's 20% off at 10:30 p.m. in the U.S.
A 3-tier cake, 12" wide, and/or a 4x4 truck; they've gone, we'd say
Women’s tennis player hits the ball — hard… I'm gonna watch, don't you
A mother-in-law's dog [sic] cannot see mr. Smith's rock-n-roll o'clock"""


def random_corpus(seed, pictures=60, vocabulary=12):
    """Short words in random order, 1 to 5 references a picture; some captions copied, some empty of matches."""
    rng = np.random.default_rng(seed)
    text = lambda: " ".join(f"w{i}" for i in rng.integers(0, vocabulary, rng.integers(1, 14)))  # noqa: E731
    references = [[text() for _ in range(rng.integers(1, 6))] for _ in range(pictures)]
    candidates = [own[0] if rng.random() < 0.2 else text() for own in references]
    candidates[0] = "unheard of words"
    return candidates, references


def made_corpus():
    """Captions of pictures, each with the next two as references."""
    lines = [" ".join(words(line)) for line in CAPTIONS.splitlines()]
    references = [[lines[(i + 1) % len(lines)], lines[(i + 2) % len(lines)]] for i in range(len(lines))]
    references[0].append(lines[0])
    return lines, references


def reference_scores(name, candidates, references):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = dict(enumerate(references))
    found = {index: [line] for index, line in enumerate(candidates)}
    if name == "bleu":
        corpus, single = Bleu(4).compute_score(truth, found, verbose=0)
        return corpus[3], np.array(single[3])
    return {"rouge": Rouge(), "cider": Cider()}[name].compute_score(truth, found)


def our_scores(name, candidates, references):
    split = [line.split() for line in candidates]
    truth = [[line.split() for line in group] for group in references]
    if name == "bleu":
        counts = np.stack([bleu_counts(own, other) for own, other in zip(split, truth, strict=True)])
        return bleu(counts.sum(axis=0)), bleu(counts)
    if name == "rouge":
        single = np.array([rouge_l(own, other) for own, other in zip(split, truth, strict=True)])
    else:
        single = cider_d(split, truth)
    return single.mean(), single


@pytest.mark.parametrize("name", ["bleu", "rouge", "cider"])
@pytest.mark.parametrize(
    "corpus", [made_corpus, *range(5)], ids=lambda corpus: getattr(corpus, "__name__", str(corpus))
)
def test_scores_are_the_reference_s(name, corpus):
    candidates, references = random_corpus(corpus) if isinstance(corpus, int) else corpus()
    want, want_each = reference_scores(name, candidates, references)
    found, found_each = our_scores(name, candidates, references)
    assert found == pytest.approx(want, abs=1e-12)
    np.testing.assert_allclose(found_each, want_each, rtol=0, atol=1e-12)
    assert 0 < found < 10


@pytest.mark.skipif(shutil.which("java") is None, reason="the reference tokeniser runs in Java")
def test_words_are_the_reference_s(tmp_path):
    import pycocoevalcap.tokenizer.ptbtokenizer as reference

    (tmp_path / "captions.txt").write_text(CAPTIONS, encoding="utf-8")
    command = ["java", "-cp", reference.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", str(tmp_path / "captions.txt")]
    folder = Path(str(reference.__file__)).parent
    out = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    for caption, line in zip(CAPTIONS.splitlines(), out.splitlines(), strict=True):
        kept = [token for token in line.split() if token not in reference.PUNCTUATIONS]
        assert words(caption) == kept
