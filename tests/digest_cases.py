"""Tables of every type that a digest knows; pyarrow and NumPy are all that it takes to make them."""

import datetime

import numpy as np
import pyarrow as pa


def tables():
    """Name -> a table of one column."""
    utc = datetime.UTC
    struct = pa.struct([("a", pa.int32()), ("b", pa.string())])
    columns = {
        "texts": pa.array(["a", "", None, "ü\n"]),
        "bytes": pa.array([b"\0\xff", None, b""], pa.binary()),
        "bools": pa.array([True, None, False]),
        "int8": pa.array([-1, None, 127], pa.int8()),
        "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "float32": pa.array([1.5, None, float("nan"), -0.0], pa.float32()),
        "float64": pa.array(np.array([0.1, np.nan, np.inf]), pa.float64()),
        "times": pa.array(
            [datetime.datetime(2017, 6, 13, 10, 10, 31, tzinfo=utc), None], pa.timestamp("us", "UTC")
        ),
        "dates": pa.array([datetime.date(2017, 6, 13), None], pa.date32()),
        "lists": pa.array([["a", None], [], None, ["b"]], pa.list_(pa.string())),
        "pairs": pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)),
        "structs": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": ""}], struct),
        "links": pa.array([[{"a": 1, "b": "x"}], None, []], pa.list_(struct)),
        "nulls": pa.nulls(3),
        "none": pa.array([], pa.string()),
    }
    return {name: pa.table({"x": column}) for name, column in columns.items()}
