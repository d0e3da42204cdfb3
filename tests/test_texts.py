"""Texts of BigEarthNet.txt: taken apart and put together, and exported with their pictures."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.bigearthnet.texts import (
    Box,
    Choice,
    Point,
    TextError,
    hide_answers,
    parse_box,
    parse_choice,
    parse_point,
    parse_reference,
    replace_point,
)
from reben_cloud.checks.files import verify_files
from reben_cloud.cli import app
from reben_cloud.errors import ChecksumError, ConflictError, NotFoundError, SourceError
from reben_cloud.export.opened import find_exported_files
from tests.forked import ForkServer
from tests.roots import synthetic_root
from tests.test_export_files import contents

HUNDREDTHS = st.integers(0, 100).map(lambda n: n / 100)
FLIPS = st.sampled_from([None, "horizontal", "vertical", "both"])


@st.composite
def boxes(draw, edges=HUNDREDTHS):
    left, right = sorted(draw(st.lists(edges, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(edges, min_size=2, max_size=2, unique=True)))
    return Box(left, top, right, bottom)


# -- taken apart ---------------------------------------------------------------------------------------


@given(boxes(st.floats(0, 1, allow_nan=False)))
def test_a_box_is_read_as_it_was_written(box):
    assert parse_box(str(box)) == box


@given(HUNDREDTHS, HUNDREDTHS)
def test_a_point_is_read_as_it_was_written(x, y):
    text = f"What is at {Point(x, y)}, please?"

    assert parse_point(text) == Point(x, y)
    assert replace_point(text, "here") == "What is at here, please?"


OPTION = st.text(st.characters(categories=["L", "N"], include_characters=" ,-()"), min_size=1).filter(
    lambda text: (
        text == text.strip() and not text.endswith((",", ";")) and not re.search(r"(^|\s)[a-j]\)", text)
    )
)


@given(OPTION, st.lists(OPTION, min_size=2, max_size=6))
def test_options_are_read_as_they_were_written(question, options):
    choice = Choice(question=question, options=dict(zip("abcdef", options, strict=False)))

    found = parse_choice(str(choice))

    assert (found.question, dict(found.options)) == (choice.question, choice.options)


def test_options_may_have_commas():
    text = (
        "Which class covers most of the patch? a) Pastures, b) Land principally occupied by agriculture, with "
        "significant areas of natural vegetation, c) Transitional woodland, shrub, d) Mixed forest"
    )

    assert list(parse_choice(text).options.values()) == [
        "Pastures",
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "Transitional woodland, shrub",
        "Mixed forest",
    ]


def test_a_reference_is_found():
    assert (
        parse_reference("Where is the <ref>largest region of pastures</ref>?") == "largest region of pastures"
    )
    assert parse_reference("Where are pastures?") is None


@pytest.mark.parametrize(
    "text",
    ["", "[0.1 0.2 0.3 0.4]", "[0.1, 0.2, 0.3, 0.4]", "[0.5 0.5, 0.1 0.9]", "[0.5 0.1, 0.5 0.9]", "[0 0, 1 1.1]"],
)  # fmt: skip
def test_what_is_not_a_box_is_refused(text):
    with pytest.raises(TextError, match=r"not a box|edges of a box"):
        parse_box(text)


def test_what_is_not_a_point_or_a_choice_is_refused():
    for text in ("<point>(2, 0.1)</point>", "<point>here</point>", f"{Point(0, 0)} or {Point(1, 1)}"):
        with pytest.raises(TextError):
            parse_point(text)
    for text in ("Which?", "Which? a) this", "Which? a) , b) that", "Which? b) this c) that"):
        with pytest.raises(TextError, match="not a question with options"):
            parse_choice(text)


# -- boxes and pictures --------------------------------------------------------------------------------


@given(boxes(), FLIPS)
def test_a_flip_undoes_itself_exactly(box, flip):
    assert box.flipped(flip).flipped(flip) == box


@given(boxes(), FLIPS, st.sampled_from([100, 120, 224, 448, 1000]))
def test_a_box_is_flipped_with_its_picture(box, flip, size):
    """What the box covers in the picture, mirrored, is what the mirrored box covers in the mirrored picture."""
    left, top, right, bottom = box.to_pixels(size)
    picture = np.zeros((size, size), np.bool_)
    picture[top:bottom, left:right] = True
    step = {
        None: np.s_[:, :],
        "horizontal": np.s_[:, ::-1],
        "vertical": np.s_[::-1],
        "both": np.s_[::-1, ::-1],
    }

    left, top, right, bottom = box.flipped(flip).to_pixels(size)

    mirrored = np.zeros((size, size), np.bool_)
    mirrored[top:bottom, left:right] = True
    np.testing.assert_array_equal(mirrored, picture[step[flip]])


@given(boxes(), st.integers(1, 4096))
def test_a_box_in_pixels_covers_the_box_and_less_than_a_pixel_more(box, size):
    left, top, right, bottom = box.to_pixels(size)

    assert 0 <= left < right <= size
    assert 0 <= top < bottom <= size
    for value, edge, side in (
        (box.left, left, 1),
        (box.top, top, 1),
        (box.right, right, -1),
        (box.bottom, bottom, -1),
    ):
        assert -1e-9 <= side * (value * size - edge) < 1


def test_hundredths_of_a_hundred_pixels_are_whole():
    for n in range(1, 100):
        assert Box(n / 100, 0.0, 1.0, 1.0).to_pixels(100)[0] == n
        assert Box(0.0, 0.0, n / 100, 1.0).to_pixels(100)[2] == n
        assert Point(n / 100, 1.0).to_pixels(100) == (n, 99)


@given(boxes(st.integers(0, 120).map(lambda n: n / 120)))
def test_the_convention_of_boxes_loses_no_pixel_of_an_object(exact):
    """Edges at pixels of 120, floored and ceiled to 0.01 as the texts have them, still hold the object's pixels."""
    written = Box(
        *(np.floor(round(v * 100, 9)) / 100 for v in (exact.left, exact.top)),
        *(np.ceil(round(v * 100, 9)) / 100 for v in (exact.right, exact.bottom)),
    )

    left, top, right, bottom = written.to_pixels(120)

    assert left <= round(exact.left * 120)
    assert top <= round(exact.top * 120)
    assert right >= round(exact.right * 120)
    assert bottom >= round(exact.bottom * 120)
    assert (right - left) - round((exact.right - exact.left) * 120) <= 4


@pytest.mark.parametrize(
    ("caption", "want"),
    [
        ("A patch in Austria in summer.", "A patch in this country in this season."),
        ("Austrian fields, autumn colours.", "Local fields, autumn colours."),
        ("The Warm-summer humid continental climate zone, Austria's.", "This climate zone, this country's."),
        ("Midsummer in Austrialand.", "Midsummer in Austrialand."),
        ("An Arable land, south of pastures.", "An Arable land, south of pastures."),
    ],
)
def test_captions_without_answers(caption, want):
    answers = {"country": "Austria", "season": "summer", "climate_zone": "Warm-summer humid continental"}

    assert hide_answers(caption, **answers) == want


def test_fall_is_autumn_too():
    assert (
        hide_answers("An autumn, a fall.", country="", season="fall", climate_zone="")
        == "This season, this season."
    )


# -- exported ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "root"
    synthetic_root(folder, 60)
    return folder


def texts_of(patch_ids):
    """Made-up texts in the form of BigEarthNet.txt, about most of some patches and one that is not there."""
    rows = []

    def add(patch_id, kind, category, asked, answer, split="train"):
        rows.append(
            {
                "ID": 1000 + len(rows),
                "s1_name": "x",
                "patch_id": patch_id,
                "input": asked,
                "output": answer,
                "type": kind,
                "category": category,
                "split": split,
                "country": "Austria",
                "season": "summer",
                "climate_zone": "Cold",
                "latitude": 47.0,
                "longitude": 13.0,
            }
        )

    for number, patch_id in enumerate([*patch_ids, "S2A_MSIL2A_20990101T000000_N9999_R022_T33UUP_00_00"]):
        split = "bench" if number % 5 == 4 else "train"
        add(patch_id, "binary", "presence", "Is there a river?", "yes", split)
        add(patch_id, "mcq", "area", "How much? a) 1, 2 %, b) all, c) none", "b", split)
        add(
            patch_id,
            "bounding box",
            "reference",
            "Find the <ref>largest lake</ref>.",
            "[0.29 0.0, 1.0 0.71]",
            split,
        )
        add(
            patch_id,
            "bounding box",
            "point",
            "Box at <point>(0.82, 0.28)</point>",
            "[0.55 0.2, 1.0 1.0]",
            split,
        )
        add(patch_id, "binary", "relative pos", "Is the lake left of the town?", "no", split)
        add(patch_id, "captioning", "None", "Describe it.", "Fields in Austria, seen in summer.", split)
    return rows


@pytest.fixture
def texts(built, tmp_path):
    rows = texts_of(rc.open(built).search().patch_ids[:20])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet", row_group_size=50)
    return tmp_path / "texts.parquet"


def test_json_lines_have_every_text_and_its_parts(built, texts, tmp_path):
    selection = rc.open(built).search()
    out = tmp_path / "out"

    report = selection.export_texts(out, texts, pictures=["true-color", "s1"], size=200)

    assert (report.num_patches, report.num_files, report.num_texts) == (20, 40, 120)
    rows = {row["ID"]: row for row in texts_of(selection.patch_ids[:20])}
    found = [
        json.loads(line) for split in ("train", "bench") for line in (out / f"texts-{split}.jsonl").open()
    ]
    assert sorted(record["id"] for record in found) == sorted(rows)[:120]
    for record in found:
        row = rows[record["id"]]
        assert [record[k] for k in ("patch_id", "split", "type", "category")] == [
            row[k] for k in ("patch_id", "split", "type", "category")
        ]
        assert record["size"] == 200
        assert [*record["images"]] == ["true-color", "radar"]
        for path in record["images"].values():
            with Image.open(out / path) as image:
                assert image.size == (200, 200)
            assert row["patch_id"] in path
    by_category = {record["category"]: record for record in found}
    assert by_category["area"]["options"] == {"a": "1, 2 %", "b": "all", "c": "none"}
    assert (by_category["area"]["question"], by_category["area"]["answer"]) == ("How much?", "b")
    assert by_category["reference"]["box"] == [58, 0, 200, 142]
    assert by_category["reference"]["reference"] == "largest lake"
    assert by_category["point"]["point"] == [164, 56]
    assert by_category["point"]["question"] == "Box at <point>(164, 56)</point>"
    assert by_category["None"]["answer"] == "Fields in Austria, seen in summer."
    assert verify_files(find_exported_files(out)).ok


def test_llava_has_conversations_by_the_stated_templates(built, texts, tmp_path):
    out = tmp_path / "out"

    rc.open(built).search().export_texts(
        out, texts, form="llava", pictures=["true-color", "map"], without_answers=True
    )

    found = json.loads((out / "texts-train.json").read_text())
    bench = json.loads((out / "texts-bench.json").read_text())
    assert len(found) + len(bench) == 120
    said = json.loads((out / "export.json").read_text())
    assert said["settings"]["templates"]["binary"] == "{question}\nAnswer yes or no."
    assert said["settings"]["texts"]["bytes"] == texts.stat().st_size
    assert (said["num_texts"], said["left_out"]) == (120, {})
    values = [[turn["value"] for turn in record["conversations"]] for record in found[:6]]
    assert values == [
        ["<image>\n<image>\nIs there a river?\nAnswer yes or no.", "yes"],
        [
            "<image>\n<image>\nHow much?\na) 1, 2 %\nb) all\nc) none\nAnswer with the letter of the right option.",
            "b",
        ],
        [
            "<image>\n<image>\nFind the <ref>largest lake</ref>.\nAnswer with [left, top, right, bottom] in pixels of "
            "a picture of 120 x 120.",
            "[34, 0, 120, 86]",
        ],
        [
            "<image>\n<image>\nBox at <point>(98, 33)</point>\nAnswer with [left, top, right, bottom] in pixels of a "
            "picture of 120 x 120.",
            "[66, 24, 120, 120]",
        ],
        ["<image>\n<image>\nIs the lake left of the town?\nAnswer yes or no.", "no"],
        ["<image>\n<image>\nDescribe it.", "Fields in this country, seen in this season."],
    ]
    assert [turn["from"] for turn in found[0]["conversations"]] == ["human", "gpt"]
    assert isinstance(found[0]["id"], str)
    assert all((out / path).is_file() for path in found[0]["image"])


def test_a_flip_takes_boxes_along_and_leaves_out_what_it_makes_false(built, texts, tmp_path, caplog):
    out = tmp_path / "out"

    report = rc.open(built).search().export_texts(out, texts, size=100, flip="horizontal")

    records = [json.loads(line) for line in (out / "texts-train.jsonl").open()]
    assert report.num_texts == 80
    assert {record["category"] for record in records} == {"presence", "area", "reference", "point"}
    assert records[2]["box"] == [0, 0, 71, 71]
    assert records[3]["point"] == [18, 28]
    said = json.loads((out / "export.json").read_text())
    assert said["left_out"] == {"a flip makes texts about where things are false": 40}
    assert "40 texts are left out" in caplog.text
    with Image.open(out / records[0]["images"]["true-color"]) as image:
        mirrored = np.array(image)
    rc.open(built).search(limit=1).export_png(tmp_path / "png", size=100)
    (file,) = (tmp_path / "png" / "true-color").rglob("*.png")
    with Image.open(file) as image:
        assert records[0]["patch_id"] == file.stem
        np.testing.assert_array_equal(np.array(image)[:, ::-1], mirrored)


def test_texts_that_are_not_written_as_their_type_are_counted(built, tmp_path):
    (patch_id,) = rc.open(built).search(limit=1).patch_ids
    rows = texts_of([patch_id])[:4]
    rows[1]["output"], rows[2]["output"] = "e", "[0.5 0.5, 0.1 0.9]"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")

    report = rc.open(built).search().export_texts(tmp_path / "out", tmp_path / "texts.parquet")

    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report.num_texts == 2
    assert said["left_out"] == {
        "a bounding box that is not written as one": 1,
        "a mcq that is not written as one": 1,
    }


def test_wrong_files_of_texts_are_named(built, texts, tmp_path):
    selection = rc.open(built).search()
    table = pq.read_table(texts)
    others = table.set_column(2, "patch_id", pa.array(["nowhere"] * len(table)))
    pq.write_table(others, tmp_path / "others.parquet")
    pq.write_table(table.drop_columns(["output", "season"]), tmp_path / "less.parquet")
    (tmp_path / "no.parquet").write_text("no")
    bad = table.set_column(table.column_names.index("split"), "split", pa.array(["../up"] * len(table)))
    pq.write_table(bad, tmp_path / "bad.parquet")

    for name, error, said in (
        ("none.parquet", NotFoundError, "no such file of texts"),
        ("others.parquet", NotFoundError, "none of the 60 selected patches has a text"),
        ("less.parquet", SourceError, "it lacks output$"),
        ("no.parquet", ChecksumError, "not a parquet file"),
        ("bad.parquet", SourceError, "'../up' is not the name of a split"),
    ):
        with pytest.raises(error, match=said):
            selection.export_texts(tmp_path / "out", tmp_path / name)
    with pytest.raises(SourceError, match="it lacks output, season"):
        selection.export_texts(tmp_path / "out", tmp_path / "less.parquet", without_answers=True)
    with pytest.raises(ValueError, match="form must be jsonl or llava"):
        selection.export_texts(tmp_path / "out", texts, form="sharegpt")
    assert not (tmp_path / "out").exists()


def test_another_file_of_texts_is_another_export(built, texts, tmp_path):
    selection = rc.open(built).search(limit=5)
    selection.export_texts(tmp_path / "out", texts)
    rows = pq.read_table(texts)
    pq.write_table(rows.slice(0, 60), texts)

    with pytest.raises(ConflictError, match="made with another texts"):
        selection.export_texts(tmp_path / "out", texts)
    with pytest.raises(ConflictError, match="another kind"):
        selection.export_texts(tmp_path / "out", texts, form="llava")


EXPORT = """
import sys
import reben_cloud as rc
selection = rc.open(sys.argv[1]).search()
print("ready", flush=True)
selection.export_texts(sys.argv[2], sys.argv[3], form="llava", size=300, threads=1)
print("done", flush=True)
"""


@pytest.mark.slow
def test_kills_leave_the_same_bytes(built, texts, tmp_path):
    def start(out):
        process = server.start(EXPORT, built, out, texts)
        assert process.stdout.readline() == b"ready\n"
        return process

    with ForkServer("import reben_cloud, reben_cloud.export.texts") as server:
        assert start(tmp_path / "whole").communicate() == b"done\n"
        for wait in (0.2, 0.5, 0.8, 1.1):
            process = start(tmp_path / "out")
            time.sleep(wait)
            process.kill()
            process.communicate()
        start(tmp_path / "out").communicate()

    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_the_command(built, texts, tmp_path):
    words = ["export", built, tmp_path / "out", "--format", "llava", "--texts", texts, "--size", "448"]
    result = CliRunner().invoke(app, [*map(str, words), "--flip", "vertical", "--without-answers"])

    assert result.exit_code == 0, result.stderr
    assert re.search(r"out: 20 patches, 80 texts, 20 files, [\d.]+ [kM]B, made now\n", result.stdout)
    said = CliRunner().invoke(app, ["info", str(tmp_path / "out")]).stdout
    assert "an export to llava of 20 of the 60 patches" in said
    assert "texts        80\n" in said
    missing = CliRunner().invoke(app, [*map(str, words[:6]), str(tmp_path / "lost.parquet")])
    assert isinstance(missing.exception, NotFoundError)
