"""Codes, classes, orders and encodings, against the real metadata and nomenclature."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from reben_cloud.bigearthnet import labels
from reben_cloud.errors import InvalidPatchError


def test_nomenclature_is_the_published_one(shared):
    path = shared / "data" / "bigearthnet_pipeline" / "clc_metadata.json"
    entries = json.loads(path.read_text())["clc_data"]

    assert len(entries) == len(labels.CLC) == 45
    for entry in entries:
        ours = labels.CLC[int(entry["code"])]
        assert (ours.label or "UNLABELED") == entry["name_19"]
        assert ours.name.lower() == entry["name_clc"].lower()


def test_real_label_counts_in_both_orders(shared):
    folder = shared / "data" / "bigearthnet_pipeline"
    column = pq.read_table(folder / "metadata.parquet", columns=["labels"])["labels"]

    alphabetical = labels.encode_many(column)
    nomenclature = labels.encode_many(column, order="nomenclature")

    assert alphabetical.shape == (480_038, 19)
    assert alphabetical.sum(axis=0)[:3].tolist() == [33_181, 188_025, 1_316]
    assert nomenclature.sum(axis=0)[:3].tolist() == [63_758, 11_142, 188_025]


def test_real_map_gives_the_real_labels(shared):
    name = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57_reference_map.tif"
    (path,) = (shared / "data" / "rico_hdl_bigearthnet").rglob(name)

    found = labels.labels_of_map(tifffile.imread(path))

    assert found == ("Arable land", "Broad-leaved forest", "Mixed forest", "Pastures")


@given(
    names=st.lists(st.sampled_from(labels.CLASSES), unique=True),
    order=st.sampled_from(["alphabetical", "nomenclature"]),
)
def test_decode_reverts_encode_and_many_equals_one(names, order):
    vector = labels.encode(names, order=order)

    assert vector.dtype == np.float32
    assert sorted(labels.decode(vector, order=order)) == sorted(names)
    many = labels.encode_many(pa.array([names, []], pa.list_(pa.string())), order=order)
    assert many.tolist() == [vector.tolist(), [0] * 19]


@pytest.mark.parametrize("order", ["alphabetical", "nomenclature"])
def test_lookup_table_agrees_with_the_names(order):
    table = labels.class_of_code(order)

    for code in range(1000):
        entry = labels.CLC.get(code)
        want = (
            labels.NO_CLASS
            if entry is None or entry.label is None
            else labels.classes(order).index(entry.label)
        )
        assert table[code] == want


@pytest.mark.parametrize(
    "typo", ["arable land", "Arable Lnad", "Arabel land"], ids=["case", "letters", "swapped"]
)
def test_unknown_label_gets_the_nearest_name(typo):
    with pytest.raises(ValueError, match=r"unknown label .*; did you mean 'Arable land'"):
        labels.encode([typo])
    with pytest.raises(ValueError, match="Arable land"):
        labels.encode_many(pa.array([["Pastures", typo]]))


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="'alphabetical' or 'nomenclature'"):
        labels.classes("paper")


def test_a_map_with_a_strange_code_is_refused():
    with pytest.raises(InvalidPatchError, match="here: the reference map has the value 7"):
        labels.labels_of_map(np.array([[111, 7]], np.uint16), name="here")
