"""What a training run is to do: a TOML recipe that fills one `TrainConfig`, strictly.

The defaults are the recipe of the published models (reBEN training scripts), which were stopped and chosen on
validation as well. Of several seeds, though, the one that was uploaded is the best on test; here test is looked at
once. What else differs is in `modelcard.DIFFERENCES`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reben_cloud.bigearthnet.inputs import BandStatistics, choose_bands, statistics_of
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root.query import OPTIONS, GeoInterface, Query
from reben_cloud.schema import Schema
from reben_cloud.search import read_ids
from reben_cloud.training.filling import change, convert, fill, read_toml, require, toml_names

ANY = "any"
"""Value of a subset's option that takes its default back."""

RECIPES = files("reben_cloud.training").joinpath("recipes")
"""Folder of the recipes that come with the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset(Query):
    """A part of the dataset: a `Query`, which leaves out patches with snow, cloud or shadow unless told otherwise.

    What a recipe writes down must read back the same, so a value is kept as TOML and JSON have it: a time as
    text, a geometry as GeoJSON, a list of one name as that name, a longer one as a tuple, an empty one as None,
    a file of ids as the ids in it.

    Raises:
        ValueError: If `split` is empty, or `recommended` neither True nor None.
    """

    recommended: bool | None = True
    """True leaves out patches with snow, cloud or shadow; None (``"any"`` in a recipe) has them too."""

    def __post_init__(self) -> None:
        Query.__post_init__(self)
        for name, value in self.given().items():
            object.__setattr__(self, name, _plain(value))
        require("split", self.split, self.split != "", '"any" for the patches of all splits')
        # False would mean "only those with snow, cloud or shadow", as in a search; recipes that have it were
        # written when it meant "with them too", and must not change their meaning without a word.
        require(
            "recommended",
            self.recommended,
            self.recommended is None or self.recommended is True,
            _RECOMMENDED,
        )

    def to_plain(self) -> dict[str, Any]:
        """As it stands in a recipe: what is given, and ``any`` for a default that is taken back."""
        return {"split": ANY, "recommended": ANY} | self.given()


def _plain(value: Any) -> Any:
    """A condition as TOML and JSON have it."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, np.generic):
        return str(value) if isinstance(value, np.datetime64) else value.item()
    if isinstance(value, os.PathLike):
        value = read_ids(value)
    if isinstance(value, GeoInterface):
        value = value.__geo_interface__
    if isinstance(value, Mapping):
        return json.loads(json.dumps(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        items = tuple(map(_plain, value))
        return items if len(items) > 1 else next(iter(items), None)
    return value


_NUMBERS = ("lr", "weight_decay", "clip_norm")
_MOST = float(np.finfo(np.float32).max)

_RECOMMENDED = (
    'true, or "any" for the patches with snow, cloud or shadow too (which false used to mean here; '
    "in a search it means only those, and nothing is trained on these alone)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All that decides the weights of a run, and where it stops.

    Raises:
        ValueError: If a value is out of range.
    """

    architecture: str = "resnet50"
    """Name of a timm model; for ``task = "map"`` of the encoder under a decoder. Or ``smp:DECODER:ENCODER``, a model of
    maps by segmentation_models_pytorch (`smp.make_smp`), or ``package.module:function``, which makes an encoder for
    the bands (`encoders.MakesEncoder`)."""
    bands: str = "S1_10m_20m"
    """A named band set (`bands.BAND_SETS`), or band names joined by commas; see `inputs.choose_bands`."""
    statistics: Mapping[str, BandStatistics] = field(default_factory=dict)
    """Mean and standard deviation of bands that are not reBEN's, or other ones than were published."""
    task: Literal["labels", "map"] = "labels"
    """Scene labels (a logit per class and patch) or the map (a logit per class and pixel)."""
    decoder: Literal["unet", "transformer"] = "unet"
    """What stands over the encoder of a map: a U-Net, or a light transformer (`map_transformer`)."""
    drop_rate: float = 0.15
    """Dropout before the classifier, where the model has it."""
    drop_path_rate: float = 0.15
    """Stochastic depth, where the model has it."""

    weights: str = ""
    """What the weights begin as (`start.read_weights`): a folder, ``owner/name``, ``timm:TAG`` or a file. Empty:
    random."""
    freeze: Literal["backbone"] | int = 0
    """Weights that do not learn: ``backbone``, or so many of the first layers (`depth.layers_of`)."""
    layer_decay: float = 1.0
    """Share of a layer's learning rate that the layer before it has; 1 for one rate."""

    ema: float = 0.0
    """Share of the averaged weights that a step keeps, such as 0.999; they are what is measured and kept. 0: none."""
    neighbours: int = 0
    """Learn nothing: so many of the nearest patches of training, by the features of `weights`, vote. 0: learn."""

    train: Subset = field(default_factory=lambda: Subset(split="train"))
    """What is learned from."""
    validation: Subset = field(default_factory=lambda: Subset(split="validation"))
    """What stops the run and chooses its best weights."""
    test: Subset = field(default_factory=lambda: Subset(split="test"))
    """What the finished model is measured on, once."""

    labels: str = ""
    """What is learned: labels of a table layer, such as ``v1:labels`` (`truth.labels_of`). Empty: the dataset's."""
    test_labels: str = ""
    """What the test subset is measured by, written as `labels`."""

    epochs: int = 100
    """Most epochs."""
    patience: int = 5
    """Epochs without a better validation score before the run stops."""
    batch_size: int = 512
    """Samples a step over all ranks, so that a run does not depend on how many there are."""
    accumulate: int = 1
    """Parts that a rank's samples of a step go through the model in, which takes less memory; one step follows."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.01
    """Of AdamW."""
    warmup_steps: int = 1000
    """Steps of linear warm-up from a tenth of `lr`; then a cosine falls to a tenth again."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    seed: int = 42
    """Of the weights, the order, the augmentation and dropout."""

    flips: bool = True
    """Flip patches left-right and up-down, each with probability one half."""
    label_smoothing: float = 0.0
    """Targets become ``y * (1 - s) + s / 2`` for labels; the usual uniform mixture for maps."""
    positive_weights: bool = False
    """Weigh positives of a rare class more: by negatives over positives in the train subset, at most 100."""
    balanced: float = 0.0
    """Patches of rare classes come more often: the power of `Selection.balanced`, in [0, 1]; 0 has each once."""
    modality_dropout: float = 0.0
    """Probability that a patch loses one of its modalities, such as Sentinel-1 or Sentinel-2 (zeros after
    normalisation); each as likely, never two."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass; weights stay float32. fp16 scales the loss."""
    matmul_precision: Literal["highest", "high", "medium"] = "medium"
    """Of float32 matrix products on CUDA (``torch.set_float32_matmul_precision``)."""
    channels_last: bool = True
    """Memory format of convolutions."""
    compile: bool = False
    """Use ``torch.compile``."""
    sync_batchnorm: bool = True
    """Batch statistics over all ranks; on CUDA only (PyTorch has none for the CPU)."""
    lanes: int = 8
    """Canonical partitions of the order; ranks that do not divide it read more bytes of a remote root."""

    checkpoint_steps: int = 500
    """Steps between two checkpoints within an epoch."""
    log_steps: int = 20
    """Steps between two lines of the log."""
    logger: Literal["csv", "tensorboard"] = "csv"
    """Form of the log."""

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            require(
                name, getattr(self, name), abs(getattr(self, name)) <= _MOST, "a number that float32 holds"
            )
        for name in (
            *("epochs", "patience", "batch_size", "accumulate"),
            *("checkpoint_steps", "log_steps", "lanes"),
        ):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "clip_norm", "weight_decay", "seed"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "not negative")
        for name in ("drop_rate", "drop_path_rate", "label_smoothing", "modality_dropout"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        require("balanced", self.balanced, 0 <= self.balanced <= 1, "in [0, 1]")
        require("seed", self.seed, self.seed < 2**64, "below 2**64")
        fits = self.accumulate <= self.batch_size
        require("accumulate", self.accumulate, fits, f"at most batch_size, {self.batch_size}")
        require("lr", self.lr, self.lr > 0, "above 0")
        require("ema", self.ema, 0 <= self.ema < 1, "in [0, 1)")
        require("neighbours", self.neighbours, self.neighbours >= 0, "not negative")
        require("neighbours", self.neighbours, self.task == "labels" or not self.neighbours, "0 for maps")
        require("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "in (0, 1]")
        is_unet = self.decoder == "unet"
        require(
            "decoder", self.decoder, self.task == "map" or is_unet, "left out for labels, which have none"
        )
        is_count = not isinstance(self.freeze, str) and self.freeze >= 0
        require("freeze", self.freeze, self.freeze == "backbone" or is_count, "'backbone', or not negative")
        require(
            "positive_weights",
            self.positive_weights,
            self.task == "labels" or not self.positive_weights,
            "false for maps",
        )

        for name in ("labels", "test_labels"):
            require(
                name, getattr(self, name), self.task == "labels" or not getattr(self, name), "'' for maps"
            )
        # `verify-epoch` and an epoch's digest know the dataset's labels alone.
        by_others = "0 where `labels` are a layer's, as rare classes are those of the dataset's labels"
        require("balanced", self.balanced, not (self.balanced and self.labels), by_others)

    def check(self, schema: Schema) -> None:
        """Refuse what patches of a schema do not have.

        Raises:
            ValueError: If a band is unknown or has no statistics, `modality_dropout` has not two modalities
                to choose from, or there is no map to learn.
        """
        bands = choose_bands(self.bands, schema=schema)
        unknown = [name for name in self.statistics if name not in schema.bands]
        if unknown:
            raise ValueError(
                f"statistics.{unknown[0]}: {schema.name} has no such band; it has {', '.join(schema.bands)}"
            )
        statistics_of(bands, schema=schema, given=self.statistics)
        several = len({schema.bands[band].modality for band in bands}) > 1
        require(
            "modality_dropout",
            self.modality_dropout,
            several or not self.modality_dropout,
            "0 unless the bands are of several modalities",
        )
        has_map = schema.map_array is not None and bool(schema.classes.codes)
        no_map = (
            f"{schema.name} has no map here; one that is a layer (reben-cloud layer maps) is named by --layer"
        )
        require("task", self.task, has_map or self.task != "map", f"'labels': {no_map}")

    def with_statistics(self, known: Mapping[str, BandStatistics], schema: Schema) -> TrainConfig:
        """The same with the statistics of its bands that are known and that it does not have itself.

        Args:
            known: Statistics by name of the band (`Dataset.band_statistics`).
            schema: What the patches to train on hold.
        """
        bands = choose_bands(self.bands, schema=schema)
        found = {name: known[name] for name in bands if name in known and name not in self.statistics}
        return dataclasses.replace(self, statistics={**self.statistics, **found}) if found else self

    def to_json(self) -> str:
        """The resolved configuration, as saved beside the checkpoints."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        plain = {name: v.to_plain() if isinstance(v, Subset) else v for name, v in values.items()}
        plain["statistics"] = {name: dataclasses.asdict(one) for name, one in self.statistics.items()}
        return json.dumps(plain, indent=2)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return toml_names(RECIPES)


def load_recipe(
    recipe: str | os.PathLike[str],
    *,
    overrides: Iterable[str] = (),
    schema: Schema = REBEN,
    statistics: Mapping[str, BandStatistics] | None = None,
) -> TrainConfig:
    """Read a recipe and change single values of it.

    Args:
        recipe: Name of one that comes with the package, or path of a TOML file.
        overrides: ``key=value`` or ``train.country=Finland``; values as in TOML, strings need no quotes.
        schema: What the patches to train on hold.
        statistics: Statistics of bands that the recipe need not have (`Dataset.band_statistics`).

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If a key is unknown, or a value is of a wrong type or out of range.
    """
    values = read_toml(recipe, RECIPES, "recipe")
    for override in overrides:
        change(values, override)
    return config_from(values, schema=schema, statistics=statistics)


def config_from(
    values: Mapping[str, Any],
    *,
    schema: Schema = REBEN,
    statistics: Mapping[str, BandStatistics] | None = None,
) -> TrainConfig:
    """A configuration from nested plain values (TOML, JSON); arguments as for `load_recipe`.

    Raises:
        ValueError: If a key is unknown, a value is of a wrong type or out of range, or the schema lacks what is
            asked for.
    """
    config = fill(TrainConfig, values, default=TrainConfig(), readers={Subset: _subset})
    config = config.with_statistics(statistics or {}, schema)
    config.check(schema)
    return config


def _subset(values: Mapping[str, Any], prefix: str, default: Subset) -> Subset:
    """`default` with the conditions of a table; ``any`` takes one of the default's back."""
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in OPTIONS:
            raise ValueError(f"unknown key {prefix + key!r}; known are {', '.join(OPTIONS)}")
        if key == "recommended":
            require(prefix + key, value, value is True or value == ANY, _RECOMMENDED)
        filled[key] = None if value == ANY or value is None else _condition(prefix + key, key, value)
    try:
        return dataclasses.replace(default, **filled)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _condition(key: str, name: str, value: Any) -> Any:
    """A condition as TOML or JSON has it."""
    kind = OPTIONS[name].kind
    if name == "bbox" and not isinstance(value, str):
        return convert(key, value, tuple[float, ...])
    if name == "ids" and isinstance(value, str) and value.startswith("@"):
        return Path(value[1:])  # no id begins so
    if kind == "names":
        return convert(key, value, tuple[str, ...])
    if name == "share" and not isinstance(value, str):
        ends = convert(key, value, tuple[float, ...])
        return ends if len(ends) != 1 else ends[0]
    if name in ("intersects", "cql2") and isinstance(value, Mapping):
        return value
    if name in ("datetime", "s1_datetime") and isinstance(value, list | tuple | date):
        return value  # two ends; or a date as TOML has it, which an override looks like
    return convert(key, value, {"flag": bool, "number": int, "measure": float}.get(kind, str))
