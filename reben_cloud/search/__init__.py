"""Find patches by area, time, label and more in ``patches.parquet``: a `Selection`.

A search over S3 reads the file's footer, then one range of each row group that the box and the
interval leave, and columns beyond the filter's only when they are asked for.
"""

from reben_cloud.root.selection import Selection
from reben_cloud.root.table import PatchTable
from reben_cloud.search.arguments import parse_box, parse_interval, parse_names
from reben_cloud.search.evaluation import SEASONS, search

__all__ = [
    "SEASONS",
    "PatchTable",
    "Selection",
    "parse_box",
    "parse_interval",
    "parse_names",
    "search",
]
