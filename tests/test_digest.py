"""Digests of tables and documents: the same for good, whatever wrote or holds them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reben_cloud.root.digest import document_digest, is_intact, sealed, table_digest
from reben_cloud.sources.synthetic import synthetic_metadata
from tests.digest_cases import tables

TABLES = tables()

GOLDEN = {
    "texts": "3704955118a9e942",
    "bytes": "9c12dcc8cccb5b58",
    "bools": "53a7b6db216e51a9",
    "int8": "216a02a6078a4cd0",
    "uint64": "c891463505c343fe",
    "float32": "5e4c7137c845d5a1",
    "float64": "63bd02e7d5a45da9",
    "times": "785c2d4bb34f7a45",
    "dates": "157886de7ac72ca9",
    "lists": "f68179df69fc9d1f",
    "pairs": "88fc3e94e8590df1",
    "structs": "5c3579454edb7bad",
    "links": "526ed1ebafa43561",
    "nulls": "ebb8903d4a4f1fd0",
    "none": "95ae91f695761d39",
}
"""Found equal with pyarrow 18.1 and 26.0."""


def test_digests_are_these_for_good():
    assert {name: table_digest(table)[:16] for name, table in TABLES.items()} == GOLDEN


def test_the_sample_of_the_official_metadata_has_this_digest_for_good():
    found = table_digest(synthetic_metadata(4553))

    assert found == "b913cf2bc4983b3f73fec2a5dc5e71526a985f46005459006a8875e4808eed83"


@pytest.mark.parametrize("name", TABLES)
def test_the_form_in_memory_does_not_count(name):
    table = TABLES[name]
    expected = table_digest(table)
    padded = pa.concat_tables([table, table, table]).combine_chunks().slice(len(table), len(table))
    single = pa.concat_tables([table.slice(row, 1) for row in range(len(table))] or [table])

    assert table_digest(padded) == expected
    assert table_digest(single) == expected
    assert table_digest(table.replace_schema_metadata({"made": "by somebody"})) == expected
    if name in ("texts", "bytes"):
        assert table_digest(pa.table({"x": table.column("x").dictionary_encode()})) == expected
        large = pa.large_string() if name == "texts" else pa.large_binary()
        assert table_digest(pa.table({"x": table.column("x").cast(large)})) == expected


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {"nulls"}))
def test_parquet_gives_it_back(name):
    out = io.BytesIO()
    pq.write_table(TABLES[name], out, row_group_size=2)

    assert table_digest(pq.read_table(io.BytesIO(out.getvalue()))) == table_digest(TABLES[name])


def test_no_two_tables_share_a_digest():
    others = [
        pa.table({"x": pa.array(values, kind)})
        for values, kind in [
            ([None], pa.string()),
            ([""], pa.string()),
            ([b""], pa.binary()),
            (["a", "bc"], pa.string()),
            (["ab", "c"], pa.string()),
            ([["a"], ["b"]], pa.list_(pa.string())),
            ([["a", "b"], []], pa.list_(pa.string())),
            ([[], None], pa.list_(pa.string())),
            ([None, []], pa.list_(pa.string())),
            ([0], pa.int64()),
            ([None], pa.int64()),
            ([0], pa.int32()),
            ([0], pa.uint64()),
            ([0.0], pa.float64()),
            ([False], pa.bool_()),
            ([0], pa.timestamp("us", "UTC")),
            ([0], pa.timestamp("us")),
            ([0], pa.timestamp("ms", "UTC")),
            ([0], pa.date32()),
        ]
    ]
    others += [pa.table({"y": [0]}), pa.table({"x": [0], "y": [0]}), pa.table({"y": [0], "x": [0]})]
    found = [table_digest(table) for table in [*TABLES.values(), *others]]

    assert len(set(found)) == len(found)


def test_what_stands_below_a_null_does_not_count():
    def of(value):
        return pa.Array.from_buffers(
            pa.int32(), 2, [pa.py_buffer(bytes([1])), pa.py_buffer(np.array([7, value], np.int32))]
        )

    assert of(1)[1].as_py() is None
    assert table_digest(pa.table({"x": of(1)})) == table_digest(pa.table({"x": of(2)}))


def test_a_type_that_is_not_known_is_refused():
    with pytest.raises(TypeError, match="a column of type decimal128"):
        table_digest(pa.table({"x": pa.array([1], pa.decimal128(5, 2))}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=5))
def test_a_document_is_intact_in_any_order_of_keys_and_no_other_document_is(document):
    whole = sealed(document)
    key = next(iter(document.keys() - {"digest"}), None)

    assert is_intact(whole)
    assert is_intact(dict(reversed(whole.items())))
    assert sealed(whole) == whole
    if key is not None:
        assert not is_intact({**whole, key: ["another"]})
        assert not is_intact({k: v for k, v in whole.items() if k != key})
    assert not is_intact({k: v for k, v in whole.items() if k != "digest"})


def test_the_digest_of_a_document_is_this_for_good():
    document = {"format": "reben_cloud root", "num_patches": 24, "products": ["ü"], "order": {"seed": 0}}

    assert document_digest(document) == "8d9581ae6a6ae315d53abfcb678dfc5f9b1bdbcf3c5c6e495806fe34214f07ca"
