"""The only room that talks to object storage: one `Store` for folders, S3, web servers, the hub and memory.

It owns URLs, credentials, endpoints, the budget of a request and the translation of errors.
It knows nothing of datasets, caches or checksums. All calls are synchronous and release the GIL:
use threads to overlap them (obstore's async interface can abort at interpreter exit).
"""

from reben_cloud.store.address import normalise_url
from reben_cloud.store.answers import Listing, Stat
from reben_cloud.store.budget import BUDGET, Budget, Tries
from reben_cloud.store.clients import file_version
from reben_cloud.store.objects import Store, open_store
from reben_cloud.store.s3 import s3_config
from reben_cloud.store.secrecy import mask, public_url, scrub

__all__ = [
    "BUDGET",
    "Budget",
    "Listing",
    "Stat",
    "Store",
    "Tries",
    "file_version",
    "mask",
    "normalise_url",
    "open_store",
    "public_url",
    "s3_config",
    "scrub",
]
