"""Arrow columns as NumPy arrays: the same as pyarrow's own ways, which load pandas; and nothing loads it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.root import layout
from reben_cloud.root.arrow import codes_of, texts_of
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official

TEXTS = pa.array(["b", "", "aa", "b", "ö", "aa", "ccc"])

COLUMNS = [
    pytest.param(pa.chunked_array([TEXTS]), id="one chunk"),
    pytest.param(pa.chunked_array([TEXTS.slice(1, 3), TEXTS.slice(0, 0), TEXTS.slice(4)]), id="slices"),
    pytest.param(pa.chunked_array([TEXTS.cast(pa.large_string())]), id="large"),
    pytest.param(pa.chunked_array([pa.array(["aa", "bb"])]), id="equally long"),
    pytest.param(pa.chunked_array([pa.array([""])]), id="empty text"),
    pytest.param(pa.chunked_array([], pa.string()), id="nothing"),
]


@pytest.mark.parametrize("column", COLUMNS)
def test_texts_are_bytes_of_one_width(column):
    assert texts_of(column).tolist() == [text.encode() for text in column.to_pylist()]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_codes_number_the_sorted_texts(column, as_dictionary):
    names, codes = codes_of(column.dictionary_encode() if as_dictionary else column)

    assert names == sorted(set(column.to_pylist()))
    assert [names[code] for code in codes] == column.to_pylist()


LABELS = pa.array([["Pastures"], [], ["Arable land", "Mixed forest"], ["Pastures", "Arable land"]])


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_labels_are_encoded_from_texts_and_from_codes(as_dictionary):
    lists = LABELS
    if as_dictionary:
        lists = pa.ListArray.from_arrays(LABELS.offsets, LABELS.values.dictionary_encode())
    classes = REBEN.classes

    found = classes.encode(pa.chunked_array([lists.slice(2), lists.slice(0, 3)]))

    expected = LABELS.to_pylist()
    for row, labels in zip(found, [*expected[2:], *expected[:3]], strict=True):
        assert [classes.names[number] for number in np.flatnonzero(row)] == sorted(labels)
    with pytest.raises(ValueError, match=r"unknown label 'Pasture'.*did you mean 'Pastures'"):
        classes.encode(pa.chunked_array([pa.array([["Pasture"]])]))
    with pytest.raises(ValueError, match="a label is null"):
        classes.encode(pa.chunked_array([pa.array([["Pastures", None]])]))


def test_objects_are_listed_by_path_and_shards_with_their_checksums():
    shard = WrittenObject(path="shards/b.tar", nbytes=5, sha256="0" * 64, xxh3=2**63 + 1)
    other = WrittenObject(path="catalog.json", nbytes=3, sha256="1" * 64)

    listed = Objects.of([shard, other])
    again = Objects.unchecked(listed.encode(), where="here")

    for one in (listed, again):
        assert list(one.items()) == [("catalog.json", other), ("shards/b.tar", shard)]
        assert one.sizes() == {"catalog.json": 3, "shards/b.tar": 5}
        assert one.shards() == {"shards/b.tar": (5, 2**63 + 1)}
        assert "absent" not in one
    assert again.encode() == listed.encode()
    assert not Objects()


CHECK = """
import sys
import reben_cloud as rc
from reben_cloud.stream import RawLoader
next(iter(RawLoader(rc.open(sys.argv[1]).search(split="train"), batch_size=4)))
heavy = [name for name in ("pandas", "numcodecs", "rasterio", "lmdb") if name in sys.modules]
sys.exit(f"loaded on the way to the first batch: {heavy}" if heavy else 0)
"""


def test_the_way_to_a_first_batch_loads_neither_pandas_nor_what_reads_other_forms(tmp_path):
    table = official.table_of(30)
    build(make_plan(SyntheticSource(30), table, open_store(tmp_path / "root")))
    dataset = rc.open(tmp_path / "root")
    groups, _ = dataset.patch_table.places(np.arange(len(dataset)))
    as_codes = dataset.patch_table.read(groups, [layout.LABELS], as_codes=[layout.LABELS])
    plain = dataset.patch_table.read(groups, [layout.LABELS])

    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path / "root")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert pa.types.is_dictionary(as_codes.schema.field(0).type.value_type)
    assert as_codes.column(0).to_pylist() == plain.column(0).to_pylist()
