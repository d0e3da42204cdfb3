"""Data that others have for the patches of a root, beside it: writing layers. Reading them is `root.layers`' matter."""

from reben_cloud.layers.change import rebase_layer, remove_layer
from reben_cloud.layers.labels import write_label_layer
from reben_cloud.layers.table import write_table
from reben_cloud.layers.write import write_layer

__all__ = ["rebase_layer", "remove_layer", "write_label_layer", "write_layer", "write_table"]
