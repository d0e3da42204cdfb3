"""Find patches by area, time, label and more in ``patches.parquet``: from a `Query` to row numbers.

A search over S3 reads the file's footer, then one range of each row group that the box and the
interval leave, and columns beyond the filter's only when they are asked for.
"""

from reben_cloud.root.query import Query
from reben_cloud.search.arguments import parse_box, parse_interval, parse_names
from reben_cloud.search.evaluation import SEASONS, find_rows

__all__ = ["SEASONS", "Query", "find_rows", "parse_box", "parse_interval", "parse_names"]
