"""Find patches by area, time, label and more in ``patches.parquet``: from a `Query` to row numbers.

A search over S3 reads the file's footer, then one range of each row group that the box and the
interval leave, and columns beyond the filter's only when they are asked for.
"""

from reben_cloud.root.query import Query
from reben_cloud.search.arguments import SEASONS, parse_box, parse_interval, parse_names
from reben_cloud.search.evaluation import find_rows
from reben_cloud.search.ids import known_ids, read_ids
from reben_cloud.search.rows import draw_rows

__all__ = [
    "SEASONS",
    "Query",
    "draw_rows",
    "find_rows",
    "known_ids",
    "parse_box",
    "parse_interval",
    "parse_names",
    "read_ids",
]
