"""Open a root: what it holds, search, and its patches as xarray or arrays.

Opening reads the manifest only; everything else is read when asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import COUNTRIES
from reben_cloud.errors import NotFoundError
from reben_cloud.export.opened import MadeRoot, find_lmdb_root
from reben_cloud.root import layout
from reben_cloud.root.documents import MANIFEST, read_manifest, read_objects
from reben_cloud.root.manifest import schema_of
from reben_cloud.schema import Schema
from reben_cloud.search import PatchTable, Selection, parse_box, parse_names, search
from reben_cloud.store import Store, open_store

if TYPE_CHECKING:
    import xarray as xr


def open(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """Open a published root, or a local folder with an exported (or rico-hdl's own) LMDB.

    Args:
        url: Path or URL of the root: a folder, ``file://``, ``s3://bucket/prefix``, ``https://``; or
            the folder of an LMDB, also as ``lmdb://PATH``.
        storage_options: Credentials and endpoint, as in `store.open_store`.

    Raises:
        NotFoundError: If there is no manifest, so no published dataset.
        ChecksumError: If the manifest is damaged, or not that of a root.
        RebenError: If a newer version has written it.
        StorageError: If the store cannot be reached or refuses.
    """
    if (lmdb := find_lmdb_root(url)) is not None:
        return Dataset(lmdb.store, lmdb.manifest, lmdb_folder=lmdb.folder)
    store = open_store(url, storage_options)
    manifest = read_manifest(store)
    if manifest is None:
        raise NotFoundError(
            f"{store.url} has no {MANIFEST}, so no dataset is published there; "
            "check the URL, or finish the build (run `reben-cloud build` again)"
        )
    return Dataset(store, manifest)


class Dataset:
    """A published root, or an LMDB that is read like one; made by `open`. Picklable."""

    def __init__(self, store: Store, manifest: Mapping[str, Any], *, lmdb_folder: str | None = None) -> None:
        self.store = store
        """Where its objects lie."""
        self.manifest = manifest
        """What the root says of itself (``manifest.json``)."""
        self.lmdb_folder = lmdb_folder
        """The folder with ``data.mdb`` when payloads come from an LMDB; then there are no Zarr stores."""

    def __len__(self) -> int:
        """Number of patches."""
        return int(self.manifest["num_patches"])

    def __repr__(self) -> str:
        return f"Dataset({self.store.url!r}, {len(self):,} patches, {', '.join(self.modalities)})"

    @property
    def url(self) -> str:
        """Where the root lies."""
        return self.store.url

    @cached_property
    def schema(self) -> Schema:
        """What every patch has: modalities, classes, size."""
        return schema_of(self.manifest)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What every patch has: of ``s2``, ``s1``, ``map``."""
        return tuple(self.manifest["modalities"])

    @property
    def products(self) -> list[str]:
        """Names of the products, sorted."""
        return list(self.manifest["products"])

    @property
    def countries(self) -> list[str]:
        """Names that a search by country may use: the ten of reBEN and those of this root."""
        return sorted({*COUNTRIES, *self.manifest.get("countries", ())})

    @property
    def former_fingerprint(self) -> str | None:
        """What the first version called an LMDB that has no tables of its own; None for everything else."""
        return self.store.former_fingerprint if isinstance(self.store, MadeRoot) else None

    @cached_property
    def patch_table(self) -> PatchTable:
        """The table of all patches, read as far as it is asked for."""
        return PatchTable(self.store, self.manifest)

    @cached_property
    def selection(self) -> Selection:
        """Every patch of the dataset."""
        return search(self)

    def search(self, **query: Any) -> Selection:
        """The patches that fit; see `search.search` for the options."""
        return search(self, **query)

    def summary(self) -> str:
        """A few lines for people."""
        groups = ", ".join(
            f"{name} {group['num_samples']:,} in {group['num_shards']} shards"
            for name, group in self.manifest["groups"].items()
        )
        # An export keeps the root's groups, from which the order follows, beside what it has of them.
        head = [f"{self.url}: {len(self):,} patches of {len(self.products)} products"]
        if exported := self.manifest.get("exported_groups"):
            whole = sum(group["num_samples"] for group in self.manifest["groups"].values())
            groups = ", ".join(f"{name} {count:,}" for name, count in exported.items())
            head.append(
                f"  export       {len(self):,} of the {whole:,} patches of root {self.manifest['fingerprint']}"
            )
        return "\n".join(
            [
                *head,
                f"  modalities   {', '.join(self.modalities)}",
                f"  groups       {groups}",
                f"  order        {self.manifest['order']['kind']}, seed {self.manifest['order']['seed']}",
                f"  made from    {self.manifest['created_from']}",
                f"  fingerprint  {self.manifest['fingerprint']}",
            ]
        )

    def open_zarr(self, product: str) -> xr.Dataset:
        """A product's Zarr store as a lazy xarray Dataset.

        Pixels that are lost or damaged are an error when they are read.

        Raises:
            NotFoundError: If the dataset has no such product, or has lost it.
            ChecksumError: If its metadata are damaged.
        """
        import xarray as xr

        from reben_cloud.root.zarr_store import ListedStore

        if self.lmdb_folder is not None:
            raise NotFoundError(f"{self.url} is an LMDB and has no Zarr stores; open the root for that")
        if product not in self.products:
            raise NotFoundError(
                f"{self.url} has no product {product!r}; `Dataset.products` lists its {len(self.products)}"
            )
        place = layout.zarr_store(product)
        pixels = [array.zarr_name for m in self.schema.modalities for array in m.arrays]
        store = ListedStore(self.store.child(place), self._listed(f"{place}/"), pixels)
        stack: xr.Dataset = xr.open_zarr(store, zarr_format=3, consolidated=True)
        return stack

    def _listed(self, prefix: str) -> dict[str, str]:
        """Path below `prefix` of each object that the root lists there -> sha256."""
        names = self._objects.column("path")
        mine = self._objects.filter(pc.starts_with(names, prefix))
        paths = [path.removeprefix(prefix) for path in mine.column("path").to_pylist()]
        return dict(zip(paths, mine.column("sha256").to_pylist(), strict=True))

    @cached_property
    def _objects(self) -> pa.Table:
        return read_objects(self.store, self.manifest, ["path", "sha256"])

    def open_patch(self, patch_id: str) -> xr.Dataset:
        """One patch as a lazy xarray Dataset with x and y coordinates and CRS.

        Raises:
            NotFoundError: If the dataset has no such patch, or has lost it.
            ChecksumError: If the Zarr store has another patch in its place, or is damaged.
        """
        from reben_cloud.views import raster

        if not isinstance(patch_id, str):
            raise TypeError(
                f"open_patch takes one patch id, got {patch_id!r}; see Selection.to_xarray for several"
            )
        row = self.search(ids=patch_id).column("reben:zarr_row")[0].as_py()
        stack = self.open_zarr(grid.product_of(patch_id))
        raster.check_rows(stack, [row], [patch_id], url=self.url)
        return raster.patch_view(stack, row, schema=self.schema)

    def mosaic(
        self,
        product: str,
        *,
        bands: str | Sequence[str] = ("B04", "B03", "B02"),
        bbox: str | Sequence[float] | None = None,
    ) -> xr.DataArray:
        """The patches of a product as one georeferenced raster (band, y, x), lazy.

        Args:
            product: Name of the product.
            bands: One or several bands of one pixel size, or ``reference_map`` alone.
            bbox: West, south, east, north in degrees, to have less of it.

        Raises:
            ValueError: If the bands have several pixel sizes, or the box cannot be understood.
            NotFoundError: If there is no such product, band, or patch in the box.
        """
        from reben_cloud.views.mosaic import mosaic

        box = None if bbox is None else parse_box(bbox)
        names = parse_names(bands, "bands")
        stack = self.open_zarr(product)
        return mosaic(self.store, product, stack, bands=names, bbox=box, schema=self.schema)
