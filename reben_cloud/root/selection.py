"""A selection: row numbers of the patches found, and everything that can be made of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import NotFoundError, missing_extra
from reben_cloud.root import layout
from reben_cloud.root.drawn import DrawnRows, Rule
from reben_cloud.root.metadata import given_columns, given_metadata
from reben_cloud.root.positions import Several, position_of, positions_of
from reben_cloud.root.query import Query
from reben_cloud.root.repeats import Repeats, balance, weigh
from reben_cloud.root.table import PatchTable

if TYPE_CHECKING:
    import geopandas
    import pandas as pd
    import pystac
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from reben_cloud.export import ExportReport, FilesReport, Progress
    from reben_cloud.export.geotiffs import Per
    from reben_cloud.export.pictures import Flip, Stretch
    from reben_cloud.export.texts import Form
    from reben_cloud.ranking.nearest import Metric
    from reben_cloud.ranking.suspects import By
    from reben_cloud.root.dataset import Dataset
    from reben_cloud.search.contradicted import SuspectLabels
    from reben_cloud.search.similar import Neighbours
    from reben_cloud.views.resize import Resampling


class Selection:
    """Patches found by a search, in the order of the table (by place, then time) unless another was asked for.

    Nothing but row numbers is held at first; columns are read when they are asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        table: PatchTable,
        rows: NDArray[np.int64],
        *,
        query: Query | None = None,
        drawn: Sequence[DrawnRows] = (),
        repeats: Repeats | None = None,
    ) -> None:
        self.dataset = dataset
        """The dataset it was found in."""
        self.table = table
        """The table it was found in."""
        self.rows = rows
        """Row numbers in the table, int64 (len,)."""
        self.query = Query() if query is None else query
        """What it was found by; no conditions where the rows come from elsewhere."""
        self.drawn = tuple(drawn)
        """Which rows of table layers its samples have (`with_rows`)."""
        self.repeats = repeats
        """How often its patches come in an epoch (`weighted`, `balanced`); None: once."""

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.rows)

    @overload
    def __getitem__(self, at: int | np.integer) -> xr.Dataset: ...

    @overload
    def __getitem__(self, at: Several) -> Selection: ...

    def __getitem__(self, at: int | np.integer | Several) -> xr.Dataset | Selection:
        """One patch, opened (`Dataset.open_patch`); or some of the patches, as a selection in the order asked for.

        Args:
            at: Number of a patch, from the end where negative; or a slice, a list or array of different numbers, or
                of a boolean for each patch.

        Raises:
            IndexError: If there is no such patch, or a mask has another length.
            TypeError: If it is not such an index.
            ValueError: If a number comes twice.
        """
        if isinstance(at, int | np.integer):
            one = position_of(at, len(self), what="patch")
            return self.dataset.open_patch(self[one : one + 1].patch_ids[0])
        positions = positions_of(at, len(self), what="patch")
        if len(np.unique(positions)) < len(positions):
            twice = np.flatnonzero(np.bincount(positions) > 1)[0]
            raise ValueError(f"a selection has a patch once, and patch {twice} is asked for several times")
        drawn = [one.taken(positions) for one in self.drawn]
        repeats = None if self.repeats is None else self.repeats.taken(positions)
        return Selection(self.dataset, self.table, self.rows[positions], drawn=drawn, repeats=repeats)

    def __iter__(self) -> Iterator[xr.Dataset]:
        """The patches, opened one after another, each when it is asked for; loaders are what is quick."""
        return (self[at] for at in range(len(self)))

    def __contains__(self, patch_id: object) -> bool:
        """Whether the patch of this id is one of them."""
        return patch_id in self._ids

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(self.patch_ids)

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
            raise NotFoundError(f"{purpose}: {self.why_empty()}")

    def refuse_repeats(self, purpose: str) -> None:
        """Refuse a selection whose patches come more or less often than once per epoch.

        Args:
            purpose: What takes each patch once, to begin the message with.

        Raises:
            ValueError: If it has weights.
        """
        if self.repeats is not None:
            raise ValueError(
                f"{purpose} takes each patch once, and this selection has weights: pass it as it was before "
                "weighted() or balanced()"
            )

    def why_empty(self) -> str:
        """Which conditions of its search left nothing, in words; that costs a few searches."""
        from reben_cloud.search.empty import why_empty

        return why_empty(self)

    def with_rows(
        self,
        layer: str,
        *,
        rule: Rule = "one",
        where: str | Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Selection:
        """The patches that have rows in a table layer with several rows per patch, and these rows with them.

        A loader then gives ``batch["<layer>:<column>"]``: texts as a list of strings, numbers as an array, NaN where
        one is null. Other nulls are None, and whole numbers of a batch that has one are a list.

        Args:
            layer: Name of the layer, such as ``"txt"``.
            rule: ``one``: a patch has one of its rows in an epoch, each once in as many epochs as it has rows;
                which one follows from seed, epoch and patch alone. ``all``: every row is a sample: a patch is
                delivered once per row. ``list``: a patch has a list of all its rows.
            where: Only rows that fit this CQL2 filter over the layer's columns, text or JSON (needs the ``stac``
                extra), such as ``where="type = 'captioning'"``.
            columns: Columns that batches are to have, such as ``columns=["input", "output"]``; all by default.

        Raises:
            NotFoundError: If no patch has such a row.
            ValueError: If there is no such layer, column or rule, or the filter cannot be understood.
        """
        from reben_cloud.search import draw_rows

        return draw_rows(self, layer, rule=rule, where=where, columns=columns)

    def weighted(
        self,
        weights: str | Mapping[str, float] | ArrayLike,
        *,
        num_samples: int | None = None,
        passes: int = 1,
    ) -> Selection:
        """The same patches, some of which come more often in an epoch than others, and some perhaps not in each.

        A patch of weight 2.25 comes twice or three times in an epoch, and 2.25 times in the mean: in 16 epochs from a
        multiple of 16 on, 36 times or one more or less (`root.repeats.epoch_counts`). All epochs have equally many
        samples, the whole number nearest to the sum of the weights, which are scaled to it. Seed and epoch decide, so
        all else that is said of an epoch holds: it is the same on any number of ranks, and resumes from a few
        integers.

        Exports, evaluation and builds take each patch once, and refuse a selection with weights.

        Args:
            weights: A number for each patch: an array in the order of the selection; a mapping from patch id; or the
                name of a column of numbers, such as ``"scores:weight"``. Not negative; with 0, a patch never comes.
            num_samples: Scale the weights to an epoch of so many samples.
            passes: Copies of a patch come from one block of the order, which is read once and in which they are
                spread out (docs/howto/balance.md has distances). With more passes, copy c comes in pass c modulo
                `passes`, from blocks anywhere in the epoch, and is read from the store again.

        Raises:
            NotFoundError: If all weights are 0.
            ValueError: If a weight is negative, not finite or missing, or there are not as many as patches.
        """
        return self._with(weigh(self, weights, num_samples=num_samples, passes=passes))

    def balanced(
        self,
        power: float = 0.5,
        *,
        threshold: float | None = None,
        num_samples: int | None = None,
        passes: int = 1,
    ) -> Selection:
        """The same patches, those of rare classes more often: repeat factor sampling.

        A patch has the weight r = max over its classes c of max(1, (t / f(c)) ** power), where f(c) is the share of
        the selection's patches that have the class (Gupta, Dollar and Girshick, "LVIS", CVPR 2019, with power 0.5).
        No patch comes less than once. `weighted` tells what an epoch of weights is.

        Args:
            power: In [0, 1]: 0 repeats nothing, 1 repeats most.
            threshold: t, in (0, 1]: classes of at least this share are not repeated. By default the median of f over
                the classes that occur, so that half of them are.
            num_samples: As in `weighted`.
            passes: As in `weighted`.

        Raises:
            ValueError: If an argument is out of range.
        """
        return self._with(
            balance(self, power=power, threshold=threshold, num_samples=num_samples, passes=passes)
        )

    def _with(self, repeats: Repeats) -> Selection:
        return Selection(
            self.dataset, self.table, self.rows, query=self.query, drawn=self.drawn, repeats=repeats
        )

    def nearest(
        self, to: str | ArrayLike, *, column: str | None = None, k: int = 10, metric: Metric = "cosine"
    ) -> Neighbours:
        """The patches whose embeddings are nearest to a patch's or to a vector, nearest first.

        Exact: every embedding is compared, a row group at a time, so that memory stays small. Patches without an
        embedding are left out and counted (`Neighbours.num_left_out`).

        Args:
            to: Id of a patch of the dataset, which need not be in the selection and is not among its own neighbours;
                or a vector (d,), taken as float32.
            column: Column of a table layer, lists of d numbers, such as ``"emb:vector"``, or tensor of d floats of an
                array layer; by default the only one.
            k: How many, at least 1; where there are fewer, all.
            metric: ``cosine``, ``dot`` (the scalar product) or ``l2`` (Euclidean distance).

        Returns:
            The patches as a selection in order of nearness, and their scores.

        Raises:
            NotFoundError: If there is no such patch, it has no embedding, or the selection is empty.
            ValueError: If there is no such column, or several and none is named; the vector has another length; or
                an embedding cannot be compared (the message names its patch).
        """
        from reben_cloud.search.similar import find_neighbours

        return find_neighbours(self, to, column=column, k=k, metric=metric)

    def suspects(
        self, probabilities: str | ArrayLike, *, by: By = "label", limit: int | None = None
    ) -> SuspectLabels:
        """Labels that a model's predictions contradict, the likeliest mistake first (confident learning).

        Patches without a prediction are left out and counted (`SuspectLabels.num_left_out`).

        Args:
            probabilities: The model's probability of every class of the schema, in its order: a column of a table
                layer, such as ``"pred:probabilities"``, a tensor of an array layer named like one, or an array of
                floats (len(self), num_classes). They must be out of sample, as from cross-validation: a model repeats
                the mistakes that it was trained on.
            by: ``label`` ranks each label of each patch, also those that are not given and might be missing;
                ``patch`` ranks patches by the probability that any of their labels is wrong.
            limit: At most so many, at least 1; None: all.

        Raises:
            NotFoundError: If no patch has a prediction, or the selection is empty.
            TypeError: If the probabilities are not floats.
            ValueError: If there is no such column, it has not a number per class, or a probability is not in [0, 1].
        """
        from reben_cloud.search.contradicted import find_suspects

        return find_suspects(self, probabilities, by=by, limit=limit)

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
        names = self.dataset.manifest.metadata_columns
        return given_metadata(self.columns(given_columns(names)), names)

    def to_pandas(self) -> pd.DataFrame:
        """A row per patch: the official columns, product, both acquisition times (UTC), and what layers say of it.

        Vectors of layers are left out, for their size; `column` has them.
        """
        columns = given_columns(self.dataset.manifest.metadata_columns)
        given = [name for name in columns if not name.startswith("proj:")]
        times = [name for name in (layout.DATETIME, layout.S1_DATETIME) if name in self.table.names]
        of_layers = [field for one in self.table.joined.values() for field in one.fields]
        said = [
            field.name
            for field in of_layers
            if not (layout.is_checksum_column(field.name) or pa.types.is_nested(field.type))
        ]
        names = list(dict.fromkeys([*given, layout.PRODUCT, *times, *said]))
        frame: pd.DataFrame = self.columns(names).to_pandas(
            use_threads=False  # which would hold Python objects
        )
        frame = frame.rename(columns=layout.field)
        frame["labels"] = [tuple(names) for names in frame["labels"]]
        return frame

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """`to_pandas` with the footprints as geometry, EPSG:4326.

        Raises:
            MissingExtraError: If geopandas is not installed.
        """
        try:
            import geopandas
        except ImportError as error:
            raise missing_extra("geopandas", "geo", error) from error
        import shapely

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
            ``time`` (Sentinel-2, UTC) and ``label_names``, the labels as text with "; " between. Array layers
            follow, as in `Dataset.open_zarr`.

        Raises:
            NotFoundError: If nothing was found, or the dataset lacks a band.
            ValueError: If there are more than 1,000 patches, or a band is unknown.
        """
        from reben_cloud.views.raster import stack_patches

        return stack_patches(self, bands)

    def items(self) -> Iterator[pystac.Item]:
        """A pystac Item of each patch, links and assets absolute."""
        from reben_cloud.catalog import pystac_items

        return pystac_items(self)

    @cached_property
    def statistics(self) -> dict[str, dict[str, int]]:
        """How many patches each label, country (where the metadata have them), split and month has; largest first."""
        has_countries = layout.COUNTRY in self.table.names
        countries = [layout.COUNTRY] * has_countries
        table = self.columns([layout.LABELS, *countries, layout.SPLIT, layout.DATETIME])
        months = pc.strftime(table.column(layout.DATETIME), "%Y-%m")
        return {
            "labels": _counts(pc.list_flatten(table.column(layout.LABELS))),
            **({"countries": _counts(table.column(layout.COUNTRY))} if has_countries else {}),
            "splits": _counts(table.column(layout.SPLIT)),
            "months": dict(sorted(_counts(months).items())),
        }

    def _repr_html_(self) -> str:
        """A small map and counts, for notebooks."""
        from reben_cloud.views.card import selection_html

        return selection_html(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the footprints on a map, coloured by split.

        Coarse outlines of land are drawn below them.

        Args:
            ax: Where to draw; a figure of its own by default.

        Returns:
            The matplotlib axes.
        """
        from reben_cloud.views.plots import plot_footprints

        return plot_footprints(self, ax)

    def export_lmdb(
        self,
        path: str | os.PathLike[str],
        *,
        modalities: Sequence[str] | None = None,
        map_size: int | None = None,
        update: bool = False,
        prune: bool = False,
        threads: int = 6,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the patches as an LMDB that rico-hdl's readers open; `export.export_lmdb` tells more.

        Args:
            path: The new folder, or an earlier export of the same root.
            modalities: Of ``s2``, ``s1``, ``map``; all that the dataset has by default.
            map_size: What the file says of its map size, bytes; its own size by default.
            update: Add what an existing export lacks.
            prune: Drop what is not selected from an existing export.
            threads: Concurrent requests, at least 1.
            progress: Wraps the iterable of finished parts.

        Raises:
            NotFoundError: If nothing is selected; it names the condition that left nothing.
            ValueError: If a modality is not there, or the map size holds less than the data.
            ConflictError: If `path` holds something else, or another process exports to it.
            StorageError: If the disk has too little room, or a store fails.
            ChecksumError: If the dataset is damaged.
        """
        from reben_cloud.export import export_lmdb

        return export_lmdb(
            self,
            path,
            modalities=modalities,
            map_size=map_size,
            update=update,
            prune=prune,
            threads=threads,
            progress=progress,
        )

    def export_safetensors(
        self,
        path: str | os.PathLike[str],
        *,
        modalities: Sequence[str] | None = None,
        patches_per_file: int = 1000,
        update: bool = False,
        prune: bool = False,
        threads: int = 6,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the patches as plain safetensors files; `export.export_safetensors` tells more.

        Args:
            path: The new folder, or an earlier export of the same root.
            modalities: Of ``s2``, ``s1``, ``map``; all that the dataset has by default.
            patches_per_file: Patches that are stacked in one file, at least 1.
            update: Add what an existing export lacks.
            prune: Drop what is not selected from an existing export.
            threads: Concurrent requests, at least 1.
            progress: Wraps the iterable of finished parts.

        Raises:
            NotFoundError: If nothing is selected; it names the condition that left nothing.
            ValueError: If a modality is not there, or a part would be empty.
            ConflictError: If `path` holds something else, or another process exports to it.
            StorageError: If the disk has too little room, or a store fails.
            ChecksumError: If the dataset is damaged.
        """
        from reben_cloud.export import export_safetensors

        return export_safetensors(
            self,
            path,
            modalities=modalities,
            patches_per_file=patches_per_file,
            update=update,
            prune=prune,
            threads=threads,
            progress=progress,
        )

    def export_png(
        self,
        path: str | os.PathLike[str],
        *,
        pictures: Sequence[str] | None = None,
        size: int | None = None,
        resampling: Resampling = "bilinear",
        stretch: Stretch = "fixed",
        percentiles: tuple[float, float] = (2.0, 98.0),
        flip: Flip | None = None,
        update: bool = False,
        prune: bool = False,
        threads: int = 6,
        progress: Progress | None = None,
    ) -> FilesReport:
        """Write pictures of the patches; arguments and errors are those of `export.export_png`."""
        from reben_cloud.export import export_png

        return export_png(
            self,
            path,
            pictures=pictures,
            size=size,
            resampling=resampling,
            stretch=stretch,
            percentiles=percentiles,
            flip=flip,
            update=update,
            prune=prune,
            threads=threads,
            progress=progress,
        )

    def export_geotiff(
        self,
        path: str | os.PathLike[str],
        *,
        modalities: Sequence[str] | None = None,
        per: Per = "array",
        cog: bool = False,
        update: bool = False,
        prune: bool = False,
        threads: int = 6,
        progress: Progress | None = None,
    ) -> FilesReport:
        """Write the patches as GeoTIFFs; arguments and errors are those of `export.export_geotiff`."""
        from reben_cloud.export import export_geotiff

        return export_geotiff(
            self,
            path,
            modalities=modalities,
            per=per,
            cog=cog,
            update=update,
            prune=prune,
            threads=threads,
            progress=progress,
        )

    def export_texts(
        self,
        path: str | os.PathLike[str],
        texts: str | os.PathLike[str],
        *,
        form: Form = "jsonl",
        pictures: Sequence[str] | None = None,
        size: int | None = None,
        resampling: Resampling = "bilinear",
        stretch: Stretch = "fixed",
        percentiles: tuple[float, float] = (2.0, 98.0),
        flip: Flip | None = None,
        without_answers: bool = False,
        update: bool = False,
        prune: bool = False,
        threads: int = 6,
        progress: Progress | None = None,
    ) -> FilesReport:
        """Write texts and the pictures they are about; arguments and errors are those of `export.export_texts`."""
        from reben_cloud.export import export_texts

        return export_texts(
            self,
            path,
            texts,
            form=form,
            pictures=pictures,
            size=size,
            resampling=resampling,
            stretch=stretch,
            percentiles=percentiles,
            flip=flip,
            without_answers=without_answers,
            update=update,
            prune=prune,
            threads=threads,
            progress=progress,
        )


def _counts(column: Any) -> dict[str, int]:
    pairs = pc.value_counts(column).to_pylist()
    return {p["values"]: p["counts"] for p in sorted(pairs, key=lambda p: (-p["counts"], p["values"]))}
