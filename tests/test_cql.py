"""CQL2 filters against what they mean, on a table small enough to work out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
import shapely

from reben_cloud import cql

pytest.importorskip("cql2")

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "datetime": pa.array(
            [datetime(2017, month, 1, tzinfo=UTC) for month in (6, 7, 8, 9)], pa.timestamp("us", "UTC")
        ),
        "reben:country": pa.array(["Austria", "Finland", None, "Ireland"]).dictionary_encode(),
        "reben:labels": [["x"], ["x", "y"], ["y", "z"], ["z"]],
        "reben:zarr_row": pa.array([0, 1, 2, 3], pa.int32()),
        "geometry": [shapely.to_wkb(shapely.box(i, 0, i + 1, 1)) for i in range(4)],
    }
)

JULY = "TIMESTAMP('2017-07-01T00:00:00Z')"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("id = 'b'", "b", id="equal"),
        pytest.param("id <> 'b'", "acd", id="not equal"),
        pytest.param("\"reben:country\" = 'Finland'", "b", id="prefixed"),
        pytest.param("country = 'Finland'", "b", id="short name"),
        pytest.param("country <> 'Finland'", "ad", id="null is not different"),
        pytest.param("NOT country = 'Finland'", "ad", id="not null is null"),
        pytest.param("country IS NULL", "c", id="is null"),
        pytest.param("country IS NOT NULL AND id > 'a'", "bd", id="is not null"),
        pytest.param("height > 3", "", id="unknown property is null"),
        pytest.param("height > 3 OR id = 'a'", "a", id="null or true"),
        pytest.param("height IS NULL", "abcd", id="unknown property is null everywhere"),
        pytest.param("height < '2'", "", id="unknown property and text"),
        pytest.param("zarr_row BETWEEN 1 AND 2", "bc", id="between"),
        pytest.param("zarr_row * 2 + 1 = 5", "c", id="arithmetic"),
        pytest.param("id IN ('a', 'd', 'q')", "ad", id="in"),
        pytest.param("country LIKE '%land'", "bd", id="like"),
        pytest.param("CASEI(country) = CASEI('finLAND')", "b", id="case"),
        pytest.param("A_CONTAINS(labels, ('x', 'y'))", "b", id="contains"),
        pytest.param("A_OVERLAPS(labels, ('x', 'z'))", "abcd", id="overlaps"),
        pytest.param("A_CONTAINEDBY(labels, ('x', 'y'))", "ab", id="contained by"),
        pytest.param("A_EQUALS(labels, ('z', 'y'))", "c", id="equal lists"),
        pytest.param(f"datetime > {JULY}", "cd", id="time"),
        pytest.param("datetime >= '2017-07-01T00:00:00Z'", "bcd", id="time as text"),
        pytest.param("datetime < DATE('2017-07-02')", "ab", id="date"),
        pytest.param(f"T_BEFORE(datetime, {JULY})", "a", id="before"),
        pytest.param("T_INTERSECTS(datetime, INTERVAL('2017-07-01T00:00:00Z', '..'))", "bcd", id="interval"),
        pytest.param("T_DURING(datetime, INTERVAL('..', '2017-08-01T00:00:00Z'))", "ab", id="during"),
        pytest.param("S_INTERSECTS(geometry, POINT(1.5 0.5))", "b", id="point"),
        pytest.param("S_INTERSECTS(geometry, BBOX(1, 0, 1.5, 1))", "ab", id="touching box"),
        pytest.param("S_WITHIN(geometry, POLYGON((-1 -1, 2.5 -1, 2.5 2, -1 2, -1 -1)))", "ab", id="within"),
        pytest.param("true", "abcd", id="literal"),
    ],
)
def test_a_filter_finds_what_it_means(text, want):
    expression = cql.parse(text)
    columns = cql.columns(expression, TABLE.column_names) or ["id"]

    found = cql.evaluate(expression, TABLE.select(columns))

    assert "".join(TABLE.column("id").filter(pa.array(found)).to_pylist()) == want


def test_a_filter_of_the_largest_size_works():
    names = ", ".join(f"'({n})'" for n in range(1_000))
    corners = ", ".join(f"-{n / 1000} -{n * n / 1e6:.6f}" for n in range(1_000))
    wide = f"id IN ({names}) OR S_WITHIN(geometry, POLYGON(({corners}, 0 0)))"

    for text in (" OR ".join(["id = 'b'"] * 249), "NOT " * 200 + "id = 'b'", wide + " OR id = 'b'"):
        found = cql.evaluate(cql.parse(text), TABLE)
        assert TABLE.column("id").filter(pa.array(found)).to_pylist() == ["b"], text[:40]


def test_only_the_columns_that_a_filter_names_are_read():
    expression = cql.parse("(country = 'Finland' OR NOT zarr_row IN (1, 2)) AND height IS NULL")

    assert cql.columns(expression, TABLE.column_names) == ["reben:country", "reben:zarr_row"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param("id = ", "cannot be understood: 1:6: expected GEOMETRY", id="half"),
        pytest.param("", "cannot be understood: 1:1: expected Expr", id="empty"),
        pytest.param("no such (", "1:4: expected EOI", id="words"),
        pytest.param("id + 1 = 2", "cannot be evaluated", id="types"),
        pytest.param("datetime = 'soon'", "'soon' where a time must stand", id="no time"),
        pytest.param({"op": "fly", "args": [1]}, "'fly'", id="unknown operator"),
        pytest.param("S_INTERSECTS(id, POINT(0 0))", "it is 'geometry'", id="no geometry"),
        pytest.param("5", "where a condition must stand", id="no condition"),
        # Each of these would overflow the parser's stack, and end the process.
        pytest.param("(" * 20_000 + "id = 'a'" + ")" * 20_000, "250 is the most", id="20,000 parentheses"),
        pytest.param("NOT " * 20_000 + "id = 'a'", "250 is the most", id="20,000 times not"),
        pytest.param("-" * 20_000 + "1 = 1", "250 is the most", id="20,000 signs"),
        pytest.param("1" + "^1" * 20_000 + " = 1", "250 is the most", id="20,000 powers"),
        pytest.param("id" + " = id" * 20_000, "250 is the most", id="20,000 comparisons"),
        pytest.param(" OR ".join(["casei(id) LIKE 'a'"] * 126), "250 is the most", id="too much work"),
    ],
)
def test_what_cannot_be_done_is_said(query, message):
    with pytest.raises(ValueError, match=message):
        cql.evaluate(cql.parse(query), TABLE)
