"""A study: recipes that differ along axes, and the runs that are all combinations of them, from a TOML file.

Every run is a recipe like another (`training.config`); this module only says which ones there are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from typing import Any

from reben_cloud.bigearthnet.inputs import BandStatistics
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.schema import Schema, did_you_mean
from reben_cloud.training.config import RECIPES, TrainConfig, config_from
from reben_cloud.training.filling import change, read_toml, toml_names

STUDIES = files("reben_cloud.training").joinpath("studies")
"""Folder of the studies that come with the package."""

_KEYS = ("title", "about", "base", "seeds", "recipe", "axes")
_SEED = "seed"
_LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One recipe of a study, with one seed."""

    name: str
    """Its folder below that of the study."""
    variants: tuple[str, ...]
    """Its variant on each axis of the study."""
    config: TrainConfig
    """What it is to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Runs that are compared with each other."""

    name: str
    """Name of the file, or of the study that comes with the package."""
    title: str
    """What it is, in a line."""
    about: str
    """What it asks, for people; may be empty."""
    axes: Mapping[str, tuple[str, ...]]
    """What the recipes differ in -> names of its variants. Empty: one recipe, of which the seeds are compared."""
    seeds: tuple[int, ...]
    """Seeds over which means and deviations are taken."""
    runs: tuple[Run, ...]
    """All combinations, seed by seed for each."""

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The combinations of variants, each once, in order."""
        return list(dict.fromkeys(run.variants for run in self.runs))

    def runs_of(self, cell: tuple[str, ...]) -> list[Run]:
        """The runs of one combination, one for each seed."""
        return [run for run in self.runs if run.variants == cell]

    def trainings(self) -> list[tuple[Run, ...]]:
        """The runs, those together that learn the same and are only tested otherwise: the first of them learns."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(_learning(run), []).append(run)
        return [tuple(runs) for runs in groups.values()]

    def to_plain(self) -> dict[str, Any]:
        """All that its results follow from: name of a run -> its configuration, as JSON has it."""
        return {run.name: json.loads(run.config.to_json()) for run in self.runs}


def _learning(run: Run) -> str:
    """Names what a run learns: the same name, the same weights."""
    if run.config.neighbours:
        return run.name  # keeps no model for another run to measure
    default = TrainConfig()
    return replace(run.config, test=default.test, test_labels=default.test_labels).to_json()


def study_names() -> list[str]:
    """Names of the studies that come with the package."""
    return toml_names(STUDIES)


def load_study(
    study: str | os.PathLike[str],
    *,
    overrides: Iterable[str] = (),
    schema: Schema = REBEN,
    statistics: Mapping[str, BandStatistics] | None = None,
) -> Study:
    """Read a study.

    Args:
        study: Name of one that comes with the package, or path of a TOML file.
        overrides: ``key=value`` of that file, such as ``seeds=[1,2]`` or ``recipe.epochs=5``.
        schema: What the patches to train on hold.
        statistics: Statistics of bands that the recipes need not have (`Dataset.band_statistics`).

    Raises:
        FileNotFoundError: If there is no such study.
        ValueError: If a key is unknown, a value wrong, or two runs are the same; the message names the run.
    """
    values = read_toml(study, STUDIES, "study")
    for override in overrides:
        change(values, override)
    name = re.sub(r"\.toml$", "", os.path.basename(os.fspath(study)))
    for key in values:
        if key not in _KEYS:
            raise ValueError(
                f"{name}: unknown key {key!r}; {did_you_mean(key, _KEYS)} A study has {', '.join(_KEYS)}; keys of a "
                "recipe stand in [recipe] or [axes]"
            )
    seeds = values.get("seeds", [TrainConfig().seed])
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise ValueError(f"{name}: seeds must be a list of different whole numbers, got {seeds!r}")
    axes = {
        axis: _variants(f"{name}: axes.{axis}", axis, given) for axis, given in _table(name, values, "axes")
    }
    base = values.get("base", "")
    if not isinstance(base, str):
        raise ValueError(f"{name}: base must be the name of a recipe or the path of one, got {base!r}")
    common = read_toml(base, RECIPES, "recipe") if base else {}
    common = _merged(common, dict(_table(name, values, "recipe")))
    runs = [
        _run(name, common, axes, variants, seed, schema, statistics)
        for variants in product(*axes.values())
        for seed in seeds
    ]
    _refuse_twins(name, runs)
    return Study(
        name=name,
        title=str(values.get("title", name)),
        about=str(values.get("about", "")).strip(),
        axes={axis: tuple(variants) for axis, variants in axes.items()},
        seeds=tuple(seeds),
        runs=tuple(runs),
    )


def _table(name: str, values: Mapping[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    table = values.get(key, {})
    if not isinstance(table, Mapping):
        raise ValueError(f"{name}: {key} is a table such as [{key}], got {table!r}")
    return table.items()


def _variants(key: str, axis: str, given: Any) -> dict[str, Mapping[str, Any]]:
    """Name of a variant -> the keys of a recipe that it changes."""
    if axis == _SEED:
        raise ValueError(f"{key}: seeds are no axis; give seeds = [...], over which means are taken")
    if isinstance(given, list):  # values of the key that the axis is called by
        names = [str(value) for value in given]
        twice = next((one for number, one in enumerate(names) if one in names[:number]), None)
        if twice is not None:
            raise ValueError(f"{key} has {twice} twice; each value is a variant of its own")
        given = {str(value): {axis: value} for value in given}
    if (
        not isinstance(given, Mapping)
        or not given
        or not all(isinstance(one, Mapping) for one in given.values())
    ):
        raise ValueError(
            f"{key} must be a list of values of the key {axis}, or a table of variants, each a table of keys of a "
            f"recipe, got {given!r}"
        )
    return dict(given)


def _run(
    name: str,
    common: Mapping[str, Any],
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]],
    variants: Sequence[str],
    seed: int,
    schema: Schema,
    statistics: Mapping[str, BandStatistics] | None,
) -> Run:
    values = dict(common)
    for axis, variant in zip(axes.values(), variants, strict=True):
        values = _merged(values, axis[variant])
    run = "-".join([*map(_slug, variants), f"seed{seed}"])
    if _SEED in values:
        raise ValueError(
            f"{name}: {_SEED} is given in a recipe; give seeds = [...], over which means are taken"
        )
    try:
        config = config_from({**values, _SEED: seed}, schema=schema, statistics=statistics)
    except ValueError as error:
        raise ValueError(f"{name}, run {run}: {error}") from error
    return Run(name=run, variants=tuple(variants), config=config)


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` in them, table by table."""
    merged = dict(values)
    for key, value in changes.items():
        there = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(there, Mapping)
        merged[key] = _merged(there, value) if both else value  # type: ignore[arg-type]
    return merged


def _slug(variant: str) -> str:
    return re.sub(r"[^\w.+]+", "_", variant).strip("_.") or "_"


def _refuse_twins(name: str, runs: Sequence[Run]) -> None:
    by_name: dict[str, Run] = {}
    by_config: dict[str, Run] = {}
    for run in runs:
        # Folders of one name are one folder on some disks, whatever their case.
        other = by_name.setdefault(run.name.casefold(), run)
        if other is not run:
            raise ValueError(
                f"{name}: {' '.join(other.variants)} and {' '.join(run.variants)} would have the folder {run.name}; "
                "give a variant another name"
            )
        if len(run.name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"{name}: the folder of a run would have a name of {len(run.name.encode())} bytes, {run.name[:40]}...; "
                f"give its variants shorter names ({_LONGEST_NAME} bytes together), as a table on its axis"
            )
        other = by_config.setdefault(run.config.to_json(), run)
        if other is not run:
            raise ValueError(
                f"{name}: {other.name} and {run.name} are the same recipe; an axis changes nothing, or another one "
                "changes it back"
            )
