"""A selection: row numbers of the patches found, and everything that can be made of them."""

from __future__ import annotations

import html
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.errors import NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.manifest import metadata_columns
from reben_cloud.root.patches import given_metadata
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.table import PatchTable
from reben_cloud.search.arguments import parse_names

if TYPE_CHECKING:
    import geopandas
    import pandas as pd
    import pystac
    import xarray as xr

    from reben_cloud.root.dataset import Dataset


MAX_XARRAY = 1_000
"""Most patches of `Selection.to_xarray`: 0.3 GB in memory, and as many chunks of each array for Dask."""

_NO_CONDITION = ("missing_ok", "sortby", "limit")
"""Arguments of a search that leave no patch out, or none of an empty selection."""


class Selection:
    """Patches found by a search, in the order of the table (by place, then time) unless sorted.

    Nothing but row numbers is held at first; columns are read when they are asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        table: PatchTable,
        rows: NDArray[np.int64],
        *,
        query: Mapping[str, Any] | None = None,
    ) -> None:
        self.dataset = dataset
        """The dataset it was found in."""
        self.table = table
        """The table it was found in."""
        self.rows = rows
        """Row numbers in the table, int64 (len,)."""
        self.query = dict(query or {})
        """What `search` was asked for; empty where the rows come from elsewhere."""

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Selection({len(self):,} of {len(self.dataset):,} patches of {self.dataset.url!r})"

    def require_patches(self, purpose: str) -> None:
        """Refuse an empty selection, and say which condition left nothing; that costs a few searches.

        Args:
            purpose: What there is nothing for, to begin the message with.

        Raises:
            NotFoundError: If there is no patch.
        """
        if not len(self):
            raise NotFoundError(f"{purpose}: {self._why_empty()}")

    def _why_empty(self) -> str:
        conditions = {name: value for name, value in self.query.items() if name not in _NO_CONDITION}
        if not len(self.dataset) or not conditions:
            return f"{self.dataset.url} has no patch" if not len(self.dataset) else "the selection is empty"
        asked = {name: f"{name}={reprlib.repr(value)}" for name, value in conditions.items()}

        def count(names: Iterable[str]) -> int:
            return len(self.dataset.search(missing_ok=True, **{name: conditions[name] for name in names}))

        if alone := [text for name, text in asked.items() if not count([name])]:
            return f"no patch of {self.dataset.url} fits {', and none '.join(alone)}"
        without = {text: count(conditions.keys() - {name}) for name, text in asked.items()}
        helps = [f"without {text} there are {number:,}" for text, number in without.items() if number]
        return (
            f"no patch of {self.dataset.url} fits {' and '.join(asked.values())} together; "
            f"{', '.join(helps) or 'to leave one of them out is not enough'}"
        )

    @cached_property
    def patch_ids(self) -> list[str]:
        """Ids of the patches, in order; ``batch["index"]`` counts in this list."""
        return [str(i) for i in self.column("id").to_pylist()]

    def column(self, name: str) -> pa.ChunkedArray[Any]:
        """A column of ``patches.parquet`` for these patches, in order.

        Raises:
            KeyError: If there is no such column.
        """
        return self.table.take(self.rows, [name]).column(name)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Several columns at once, which reads less than one after the other."""
        return self.table.take(self.rows, names)

    def to_arrow(self) -> pa.Table:
        """All columns."""
        return self.columns(self.table.names)

    def official(self) -> pa.Table:
        """The official metadata of the patches, in the official schema and order."""
        names = metadata_columns(self.dataset.manifest)
        return given_metadata(self.columns([layout.column(name) for name in names]), names)

    def to_pandas(self) -> pd.DataFrame:
        """A row a patch: the official columns, product, and both acquisition times (UTC)."""
        given = map(layout.column, metadata_columns(self.dataset.manifest))
        times = [name for name in (layout.DATETIME, layout.S1_DATETIME) if name in self.table.names]
        names = list(dict.fromkeys([*given, layout.PRODUCT, *times]))
        frame: pd.DataFrame = self.columns(names).to_pandas(
            use_threads=False  # which would hold Python objects
        )
        frame = frame.rename(columns=lambda name: name.removeprefix("reben:")).rename(
            columns={"id": "patch_id"}
        )
        frame["labels"] = [tuple(names) for names in frame["labels"]]
        return frame

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """`to_pandas` with the footprints as geometry, EPSG:4326."""
        import geopandas

        geometry = shapely.from_wkb(self.column("geometry").to_numpy())
        return geopandas.GeoDataFrame(self.to_pandas(), geometry=geometry, crs="EPSG:4326")

    def to_xarray(self, bands: str | Iterable[str] | None = None) -> xr.Dataset:
        """The pixels of a handful of patches, stacked along ``patch`` in order; lazy where Dask is installed.

        Variables, dimensions and coordinates are those of a product's store (`Dataset.open_zarr`).
        Besides, each patch has ``easting`` (patch, x) and ``northing`` (patch, y), metres, in the CRS
        that ``crs`` (patch) names. `Dataset.open_patch` is for rioxarray, which takes one CRS.

        Args:
            bands: Bands, polarizations or ``reference_map``; all by default.

        Returns:
            ``s2_10m`` uint16 (patch, band, y, x); ``s2_20m`` and ``s2_60m`` the same with ``band20``,
            ``y20`` and so on; ``s1`` float32 (patch, polarization, y, x); ``reference_map`` uint16
            (patch, y, x); ``labels`` uint8 0 or 1 (patch, label). In memory, (patch,): ``patch_id``,
            ``time`` (Sentinel-2, UTC) and ``label_names``, the labels as text with "; " between.

        Raises:
            NotFoundError: If nothing was found, or the dataset lacks a band.
            ValueError: If there are more than `MAX_XARRAY` patches, or a band is unknown.
        """
        from reben_cloud.views import raster

        names = None if bands is None else parse_names(bands, "bands")
        if len(self) > MAX_XARRAY:
            raise ValueError(
                f"to_xarray is for a handful of patches, {MAX_XARRAY:,} at most, and these are {len(self):,}: "
                "search with limit=, open whole products (Dataset.open_zarr, mosaic), or stream batches (StreamLoader)"
            )
        self.require_patches("nothing to stack")
        table = self.columns(["id", "reben:product", "reben:zarr_row", "reben:labels"])
        products = [str(name) for name in table.column("reben:product").to_pylist()]
        stacks = {product: self.dataset.open_zarr(product) for product in sorted(set(products))}
        rows = table.column("reben:zarr_row").to_numpy().astype(np.int64)
        ids = np.array(table.column("id").to_pylist(), object)
        for product, stack in stacks.items():
            mine = np.flatnonzero(np.asarray(products) == product)
            raster.check_rows(stack, rows[mine].tolist(), ids[mine].tolist(), url=self.dataset.url)
        found = raster.patches_view(stacks, products, rows, bands=names, schema=self.dataset.schema)
        labels = ["; ".join(names) for names in table.column("reben:labels").to_pylist()]
        return found.assign_coords(
            patch_id=("patch", ids),
            time=found.time.compute(),
            label_names=("patch", np.array(labels, object)),
        )

    def items(self) -> Iterable[pystac.Item]:
        """A pystac Item a patch, links and assets absolute."""
        import pystac

        from reben_cloud.catalog import patch_items

        for item in patch_items(self.to_arrow(), self.dataset.url, self.dataset.store.s3_location):
            yield pystac.Item.from_dict(item, preserve_dict=False)

    @cached_property
    def statistics(self) -> dict[str, dict[str, int]]:
        """How many patches each label, country, split and month has; largest first."""
        table = self.columns(["reben:labels", "reben:country", "reben:split", "datetime"])
        months = pc.strftime(table.column("datetime"), "%Y-%m")
        return {
            "labels": _counts(pc.list_flatten(table.column("reben:labels"))),
            "countries": _counts(table.column("reben:country")),
            "splits": _counts(table.column("reben:split")),
            "months": dict(sorted(_counts(months).items())),
        }

    def _repr_html_(self) -> str:
        parts = [f"<b>{len(self):,} patches</b> of {len(self.dataset):,} in {html.escape(self.dataset.url)}"]
        for title, counts in self.statistics.items() if len(self) else ():
            rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:,}</td></tr>" for k, v in counts.items())
            parts.append(f"<details><summary>{title}</summary><table>{rows}</table></details>")
        return "".join(parts)

    def plot(self, ax: Any = None) -> Any:
        """Draw the footprints on a map, coloured by split; returns the matplotlib axes.

        Where they lie far apart the coarse outlines of the ten countries are drawn below them.
        """
        import matplotlib.pyplot as plt
        from matplotlib.collections import PolyCollection

        if ax is None:
            ax = plt.subplots(figsize=(8, 7), layout="tight")[1]
        bbox: Any = self.column("bbox").combine_chunks()
        west, south, east, north = (bbox.field(s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
        corners = np.stack([west, south, east, south, east, north, west, north], axis=1).reshape(-1, 4, 2)
        splits = self.column("reben:split").to_numpy()
        wide = not len(self) or np.ptp(corners[..., 1]) > 5
        # A patch is 0.01 degrees wide: on a map of Europe only a thick edge keeps it visible.
        edge = 0.5 if not wide else 4 if len(self) < 5_000 else 2.5
        if wide:
            for outline in load_countries().polygons.values():
                for ring in shapely.get_parts(shapely.boundary(outline)):
                    ax.plot(*shapely.get_coordinates(ring).T, color="#bbbbbb", linewidth=0.8, zorder=0)
        for split, color in zip(SPLITS, ("#4477aa", "#ccaa22", "#cc3355"), strict=True):
            mine = corners[splits == split]
            if not len(mine):
                continue
            ax.add_collection(
                PolyCollection(
                    mine, facecolor=color, edgecolor=color, linewidth=edge, label=f"{split} ({len(mine):,})"
                )
            )
        ax.autoscale_view()
        ax.set_aspect(1 / np.cos(np.deg2rad(np.mean(ax.get_ylim()))))
        ax.set(xlabel="longitude (°)", ylabel="latitude (°)", title=f"{len(self):,} patches")
        if len(self):
            # Beside the map, where it covers no patch.
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
        return ax

    def export_lmdb(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write the patches as an LMDB that rico-hdl's readers open; see `export.export_lmdb`."""
        from reben_cloud.export import export_lmdb

        return export_lmdb(self, path, **options)


def _counts(column: Any) -> dict[str, int]:
    pairs = pc.value_counts(column).to_pylist()
    return {p["values"]: p["counts"] for p in sorted(pairs, key=lambda p: (-p["counts"], p["values"]))}
