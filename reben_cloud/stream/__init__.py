"""Raw batches of a selection: exactly once per epoch, prefetched by threads, verified, resumable.

It gives NumPy arrays and knows nothing of PyTorch; `reben_cloud.torch` wraps it.
"""

from reben_cloud.stream.delivered import Delivered, merge_states
from reben_cloud.stream.expected import Expected
from reben_cloud.stream.gather import Layout
from reben_cloud.stream.loader import RawLoader
from reben_cloud.stream.patches import RawPatches
from reben_cloud.stream.proof import expected_delivery
from reben_cloud.stream.select import Form
from reben_cloud.stream.stats import StreamStats

__all__ = [
    "Delivered",
    "Expected",
    "Form",
    "Layout",
    "RawLoader",
    "RawPatches",
    "StreamStats",
    "expected_delivery",
    "merge_states",
]
