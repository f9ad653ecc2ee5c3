"""What a description of a scene gets right."""

import numpy as np
import pytest

from smoljax.evaluation.metrics.facts import f1
from smoljax.evaluation.scene_facts import COUNTED, SHARES, score_description

FACTS = (
    "small plain red circle",
    "large striped blue star",
    "small plain green ring",
    "text:CAT",
    "background:sand",
    "red circle|left of|blue star",
    "blue star|above|green ring",
)
RIGHT = (
    "A small red circle at the top left is left of a large striped blue star, which is above a small green ring, "
    'on sand. The word "CAT" is printed at the bottom.'
)


def scores(text):
    found = score_description(text, FACTS)
    return {name: float(f1(found[name])) for name in COUNTED} | {name: found[name] for name in SHARES}


def test_the_truth_scores_full():
    assert set(scores(RIGHT).values()) == {1.0}


def test_each_mistake_costs_what_it_should():
    colour = scores(RIGHT.replace("red circle", "pink circle"))
    assert colour == pytest.approx(
        {
            "object_f1": 1,
            "attribute_f1": 6 / 9,  # colour, size and texture of one of three
            "object_attribute_f1": 9 / 12,
            "relation_f1": 1 / 2,
            "text_f1": 1,
            "background": 1,
            "all_objects": 0,
        }
    )
    size = scores(RIGHT.replace("small red", "large red"))
    assert size["attribute_f1"] == pytest.approx(8 / 9)
    assert size["relation_f1"] == 1
    turned = scores(RIGHT.replace("is left of", "is right of"))
    assert turned["relation_f1"] == pytest.approx(1 / 2)
    assert turned["all_objects"] == 1
    other = scores(RIGHT.replace("sand", "snow").replace("CAT", "COT"))
    assert (other["background"], other["text_f1"], other["object_f1"]) == (0, 0, 1)
    assert list(scores("nothing").values()) == [0] * 7


def test_what_is_left_out_or_invented_counts():
    fewer = scores("A small red circle is at the top left, on sand.")
    assert fewer["object_f1"] == pytest.approx(2 * 1 / (1 + 3))
    assert fewer["relation_f1"] == 0
    more = score_description(
        'A small red circle, a small red circle, on sand. The word "DOG" is here.', FACTS[:1]
    )
    np.testing.assert_array_equal(more["object_f1"], [1, 2, 1])
    np.testing.assert_array_equal(more["text_f1"], [0, 1, 0])


def test_a_relation_may_be_said_from_either_side():
    found = scores("A large striped blue star is right of a small red circle, on sand.")
    assert found["relation_f1"] == pytest.approx(2 * 1 / (1 + 2))


def test_every_caption_of_the_data_set_scores_full():
    from smoljax.data.scenes.scene import scene

    for split in ("test", "test_compositional"):
        for index in range(40):
            made = scene(split, index)
            for caption in made.captions:
                found = score_description(caption, made.facts)
                for name in COUNTED:
                    right, stated, true = found[name]
                    assert right == stated == true, (made.id, name, caption, made.facts)
                assert found["background"] == found["all_objects"] == 1, (made.id, caption)
