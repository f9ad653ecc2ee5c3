"""Records from .jsonl files, and one clear line for each way a line can be wrong."""

import json

import pytest
from data_helpers import png

from smoljax.data.jsonl import JsonLines
from smoljax.data.records import Box
from smoljax.data.sources import count_reasons, open_source
from smoljax.errors import SmoljaxError, UsageError

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Où est l'œuf ?"}]},
    {"role": "assistant", "content": "Là."},
]
GOOD = {"id": "egg", "images": ["egg.png"], "messages": MESSAGES}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "egg.png").write_bytes(png(40, 30))
    (tmp_path / "text.png").write_text("no picture")

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return str(path)

    return write


def test_a_line_becomes_a_record(write, tmp_path):
    box = {"label": "the egg", "box": [0, 0, 20, 15.5]}
    full = {**GOOD, "answers": ["là", 3], "boxes": [box], "caption": "An egg.", "meta": {"kind": "place"}}
    source = open_source(write(full, "", "  ", GOOD), contrastive=True, location_questions=True)
    assert len(source) == 2
    record = source[0]
    assert (record.id, record.answers, record.caption) == ("egg", ("là", "3"), "An egg.")
    assert record.images == (tmp_path / "egg.png",)
    assert record.boxes == (Box("the egg", (0, 0, 20, 15.5)),)
    assert record.meta == {"kind": "place"}
    assert record.conversations[0] == tuple(MESSAGES)
    assert record.conversations[1][0]["content"][1]["text"] == "Locate the egg."
    assert record.conversations[1][1]["content"][0]["text"] == "<loc_0><loc_0><loc_16><loc_16>"
    assert source[1].caption is None
    assert source[-1].conversations == (tuple(MESSAGES),)
    with pytest.raises(IndexError):
        source[2]


def test_without_being_asked_captions_and_boxes_stay_out_of_training(write):
    box = {"label": "the egg", "box": [0, 0, 20, 15]}
    record = open_source(write({**GOOD, "boxes": [box], "caption": "An egg."}))[0]
    assert record.caption is None
    assert len(record.conversations) == 1
    assert len(record.boxes) == 1


def test_lines_are_found_by_their_bytes(write):
    lines = [{"id": f"é{number}" * number, "messages": MESSAGES[1:]} for number in range(50)]
    source = open_source(write(*lines))
    assert [source[index].id for index in (49, 0, 17)] == ["é49" * 49, "", "é17" * 17]


def test_several_conversations_and_text_alone(write):
    source = open_source(
        write(
            {"images": ["egg.png"], "conversations": [MESSAGES, MESSAGES]},
            {"messages": [{"role": "user", "content": "Hi"}, MESSAGES[1]]},
        )
    )
    assert len(source[0].conversations) == 2
    assert source[0].id == "data.jsonl:1"
    assert source[1].images == ()


def bad(**changes):
    return {**GOOD, **changes}


SPOKEN = MESSAGES[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", ', r"data\.jsonl:2: not a line of JSON"),
        ("[1]", r"data\.jsonl:2: a JSON object is wanted, not list"),
        (bad(picture="x"), r"data\.jsonl:2 \(egg\): unknown key 'picture'; known: answers"),
        (bad(images="egg.png"), r"data\.jsonl:2 \(egg\): 'images' is not a list"),
        (bad(images=[3]), "a picture is given by its path, not by int"),
        (bad(images=["no.png"]), r"data\.jsonl:2 \(egg\): .*no\.png: no such picture"),
        (bad(images=[]), r"data\.jsonl:2 \(egg\): 1 place for 0 pictures"),
        (bad(images=["egg.png"] * 2), "1 place for 2 pictures"),
        ({"id": "egg"}, "give either 'messages' .* or 'conversations'"),
        (bad(conversations=[MESSAGES]), "give either 'messages' .* or 'conversations'"),
        (bad(messages=[]), "no messages"),
        (bad(messages="Hi"), "no messages"),
        (bad(messages=["Hi", SPOKEN]), "message 0 is not an object"),
        (bad(messages=[{"role": "robot", "content": "x"}, SPOKEN]), "role 'robot'; known: system, user"),
        (bad(messages=[{"role": "user"}, SPOKEN]), "message 0 has no 'content'"),
        (bad(messages=[{"role": "user", "content": [{"type": "sound"}]}, SPOKEN]), "neither .* nor"),
        (bad(messages=[{"role": "user", "content": [{"type": "text"}]}, SPOKEN]), "neither .* nor"),
        (bad(messages=MESSAGES[:1]), "no assistant's message"),
        (bad(boxes=[{"label": "egg", "box": [0, 0, 41, 10]}]), r"outside its picture of 40 × 30 pixels"),
        (bad(boxes=[{"label": "egg", "box": [9, 0, 9, 10]}]), "is empty or outside"),
        (bad(boxes=[{"label": "egg", "box": [-1, 0, 9, 10]}]), "is empty or outside"),
        (bad(boxes=[{"box": [0, 0, 9, 10]}]), "a box is"),
        (bad(boxes=[{"label": "egg", "box": [0, 0, 9]}]), "a box is"),
        (
            bad(boxes=[{"label": "egg", "box": [0, 0, 9, 9]}], images=["text.png"]),
            "not a picture that can be",
        ),
        (bad(boxes=[{"label": "e", "box": [0, 0, 9, 9]}], images=[], messages=[SPOKEN]), "but no picture"),
        (bad(caption=" "), "'caption' is not a text"),
        (
            bad(messages=[*MESSAGES[:1], {"role": "assistant", "content": "an <image>"}]),
            "the characters <image>",
        ),
        (bad(meta=[]), "'meta' is not an object"),
    ],
)
def test_a_wrong_line_is_named_or_skipped(write, line, message):
    path = write(GOOD, line)
    source = open_source(path)
    assert source[0].id == "egg"
    with pytest.raises(SmoljaxError, match=message) as caught:
        source.read(1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("data.jsonl") == 1
    lenient = open_source(path, on_error="skip")
    assert [lenient.read(index) is None for index in (0, 1)] == [False, True]
    assert list(lenient.skipped) == [1]
    assert sum(count_reasons([lenient])[path].values()) == 1


def test_reasons_are_counted_together(write):
    missing = [bad(images=[f"no{number}.png"] * number) for number in (3, 4)]
    source = open_source(write(GOOD, *missing, bad(images=["egg.png"] * 2)), on_error="skip")
    for epoch in range(2):
        assert [source.read(index, epoch) is None for index in range(4)] == [False, True, True, True]
    assert count_reasons([source]) == {
        source.name: {
            "no such picture": 2,
            '# place for # pictures; put one {"type": "image"} item for each': 1,
        }
    }


def test_boxes_are_checked_in_the_picture_as_it_is_shown(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90°
    Image.new("RGB", (40, 30)).save(tmp_path / "egg.png", exif=exif)
    (tmp_path / "a.jsonl").write_text(json.dumps(bad(boxes=[{"label": "e", "box": [0, 0, 30, 40]}])))
    assert open_source(str(tmp_path / "a.jsonl"))[0].boxes[0].box == (0, 0, 30, 40)


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(SmoljaxError, match=r"empty\.jsonl: no records"):
        open_source(str(tmp_path / "empty.jsonl"))
    with pytest.raises(SmoljaxError, match=r"gone\.jsonl: no such file"):
        JsonLines(tmp_path / "gone.jsonl")
    with pytest.raises(UsageError, match=r"data\.csv: not a data set"):
        open_source("data.csv")
    with pytest.raises(UsageError, match="no option colour"):
        open_source(str(tmp_path / "empty.jsonl"), colour=3)
