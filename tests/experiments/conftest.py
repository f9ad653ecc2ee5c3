"""Folders of predictions as `smoljax eval` writes them, made by hand."""

import json

import pytest


@pytest.fixture
def predictions(tmp_path):
    """Makes a folder: for each task one line a picture, from (exact, [right, stated, true], loss) triples."""

    def make(name, rows):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        vqa, caption, loss = [], [], []
        for number, (exact, facts, nats) in enumerate(rows):
            picture = {"id": f"p{number}"}
            for kind in ("count", "relation", "reading"):
                vqa.append({**picture, "kind": kind, "exact": float(exact)})
            caption.append({**picture, "object_attribute_f1": facts, "relation_f1": facts})
            loss.append({**picture, "loss": nats, "tokens": 10})
        for task, lines in (("vqa", vqa), ("caption", caption), ("loss", loss)):
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make
