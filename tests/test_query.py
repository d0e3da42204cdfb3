"""What a search may ask for is written once: Python, the API, the command line and recipes say the same."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import shapely

import reben_cloud as rc
from reben_cloud import export
from reben_cloud.root.backing import LmdbFolder, RootObjects
from reben_cloud.root.query import OPTIONS, Query
from reben_cloud.training.config import Subset, TrainConfig, config_from
from tests.roots import synthetic_root

FIELDS = {one.name: one for one in dataclasses.fields(Query)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    synthetic_root(folder, 40)
    ds = rc.open(folder)
    layers = [
        rc.write_table(
            folder.parent / name,
            ds,
            name=name,
            table=pd.DataFrame({"patch_id": ds.selection.patch_ids[::2], "mean": 1.0}),
        )
        for name in ("elevation", "climate")
    ]
    return ds.with_layers(*layers)


COMPANIONS = {
    "ids_order": {"ids": []},
    "sample_seed": {"sample": 5},
    "balance": {"sample": 5},
    "min_distance_m": {"sample": 5},
}
"""Conditions that say how another is meant, and that one."""


def documented(function):
    """Argument -> its text in a Google docstring."""
    text = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\n")[0]
    parts = re.split(r"^ {4}(\w+): ", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_arguments_of_a_search_are_the_fields_of_a_query():
    parameters = dict(inspect.signature(rc.Dataset.search).parameters)
    del parameters["self"]

    assert list(parameters) == list(FIELDS) == list(OPTIONS)
    for name, parameter in parameters.items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation == FIELDS[name].type
        assert parameter.default is FIELDS[name].default


def test_every_condition_reaches_the_query(dataset, monkeypatch):
    monkeypatch.setattr(rc.Dataset, "select", lambda self, query: query)

    for name in FIELDS:
        value = object()
        assert getattr(dataset.search(**{name: value}), name) is value


@pytest.mark.parametrize("name", FIELDS)
def test_help_shows_an_example_of_every_condition_that_can_be_searched(dataset, name):
    text = " ".join(documented(rc.Dataset.search)[name].split())
    examples = re.findall(rf"``{name}=(.+?)``", text)

    assert examples, f"{name} has no example"
    for example in examples:
        if name == "cql2":
            pytest.importorskip("cql2")
        dataset.search(**{"missing_ok": True, **COMPANIONS.get(name, {}), name: ast.literal_eval(example)})


@pytest.mark.parametrize("name", ["export_lmdb", "export_safetensors"])
def test_an_export_of_a_selection_has_the_options_of_the_function(name):
    method, function = (inspect.signature(getattr(o, name)) for o in (rc.Selection, export))

    assert list(method.parameters.values())[1:] == list(function.parameters.values())[1:]
    assert method.return_annotation == function.return_annotation
    assert documented(getattr(rc.Selection, name)).keys() == set(method.parameters) - {"self"}


@pytest.mark.parametrize("face", [rc.Dataset, rc.Selection, rc.open])
def test_no_face_takes_options_without_names(face):
    functions = (
        [f for name, f in vars(face).items() if inspect.isfunction(f)] if inspect.isclass(face) else [face]
    )

    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        kinds = {p.kind for p in parameters if p.annotation != "Layer"}  # any number of values, not options
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, function


def test_a_selection_says_what_it_was_found_by(dataset):
    found = dataset.search(split=iter(["train", "test"]), limit=5)

    assert found.query == Query(split=("train", "test"), limit=5)
    assert found.query.given() == {"split": ("train", "test"), "limit": 5}
    assert found.query.describe() == "split=train test, limit=5"
    assert dataset.select(found.query).patch_ids == found.patch_ids
    assert not dataset.selection.query
    assert len(dataset.selection) == len(dataset) == len(dataset.search())
    np.testing.assert_array_equal(dataset.selection.rows, dataset.search().rows)


def test_a_query_is_a_value():
    query = Query(country="Finland", missing_ok=False, snow=False)

    assert query.given() == {"country": "Finland", "snow": False}
    assert query.replace(snow=None) == Query(country="Finland")
    assert pickle.loads(pickle.dumps(query)) == query
    with pytest.raises(dataclasses.FrozenInstanceError):
        query.country = "Austria"
    with pytest.raises(TypeError, match="bboxx"):
        Query(bboxx=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("table", "given"),
    [
        pytest.param({"season": ["spring", "fall"]}, {"season": ("spring", "fall")}, id="names"),
        pytest.param({"country": ["Finland"]}, {"country": "Finland"}, id="a list of one"),
        pytest.param({"country": []}, {}, id="an empty list"),
        pytest.param({"datetime": None}, {}, id="null"),
        pytest.param({"snow": False}, {"snow": False}, id="a flag"),
        pytest.param({"limit": 9, "sortby": "-datetime"}, {"limit": 9, "sortby": "-datetime"}, id="number"),
        pytest.param({"cql2": {"op": "=", "args": [{"property": "split"}, "test"]}},
                     {"cql2": {"op": "=", "args": [{"property": "split"}, "test"]}}, id="json"),
        pytest.param({"datetime": ["2017-06", None]}, {"datetime": ("2017-06", None)}, id="two ends"),
        pytest.param({"datetime": pd.Timestamp("2017-06-01").date()}, {"datetime": "2017-06-01"}, id="TOML's date"),
        pytest.param({"share": [0.5, 1]}, {"share": (0.5, 1.0)}, id="a part"),
        pytest.param({"share": "0/0.5"}, {"share": "0/0.5"}, id="a part as text"),
        pytest.param({"share": 1}, {"share": 1.0}, id="a share"),
        pytest.param({"bbox": "1,2,3,4"}, {"bbox": "1,2,3,4"}, id="a box as text"),
        pytest.param({"sample": 9, "sample_seed": 0, "balance": "label", "min_distance_m": 500},
                     {"sample": 9, "sample_seed": 0, "balance": "label", "min_distance_m": 500.0}, id="a sample"),
    ],
)  # fmt: skip
def test_a_recipe_takes_every_condition_of_a_query(table, given):
    config = config_from({"train": {**table, "recommended": "any"}})

    assert config.train.given() == {"split": "train", **given}
    assert config_from(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param({"snow": "no"}, r"train\.snow must be of type bool, got 'no'", id="flag"),
        pytest.param({"limit": True}, r"train\.limit must be of type int, got True", id="number"),
        pytest.param({"labels": [1]}, r"train\.labels must be of type str, got 1", id="names"),
        pytest.param({"datetime": 2017}, r"train\.datetime must be of type str, got 2017", id="text"),
        pytest.param({"sample": 9.5}, r"train\.sample must be of type int, got 9\.5", id="half a patch"),
        pytest.param({"min_distance_m": "5 km"}, r"train\.min_distance_m must be a number", id="measure"),
        pytest.param({"ids": "@no-such-file"}, r"train\.ids: .*no-such-file cannot be read", id="file"),
        pytest.param({"boxx": 1}, r"unknown key 'train\.boxx'; known are bbox, intersects", id="key"),
    ],
)
def test_a_recipe_refuses_a_condition_of_another_type(table, message):
    with pytest.raises(ValueError, match=message):
        config_from({"train": table})


def test_a_recipe_keeps_the_ids_of_a_file_and_not_its_path(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("b\na\n")

    config = config_from({"train": {"ids": f"@{file}"}})

    assert config.train.ids == Subset(ids=file).ids == ("b", "a")
    file.unlink()
    assert config_from(json.loads(config.to_json())) == config


def test_a_recipe_made_in_python_reads_back():
    subset = Subset(
        country=iter(["Finland"]),
        labels={"Pastures"},
        datetime=(pd.Timestamp("2017-06-01", tz="UTC"), None),
        s1_datetime=np.datetime64("2017-06"),
        intersects=shapely.box(20, 60, 25, 65),
        bbox=np.array([20, 60, 25, 65]),
        snow=np.False_,
    )
    config = TrainConfig(train=subset)

    assert config_from(json.loads(config.to_json())) == config
    assert (subset.country, subset.labels, subset.s1_datetime) == ("Finland", "Pastures", "2017-06")
    assert subset.snow is False


def test_a_configuration_saved_before_reads_as_it_did():
    """The form in which the conditions were a few names, all of them written, empty or not."""
    old = {
        "split": "train",
        "country": ["Finland"],
        "season": [],
        "labels": [],
        "bbox": [1, 2, 3.5, 4],
        "datetime": None,
        "recommended": "any",
    }

    config = config_from({"train": old})

    assert config.train.given() == {"split": "train", "country": "Finland", "bbox": (1.0, 2.0, 3.5, 4.0)}


def test_what_payloads_are_read_from_is_a_value(dataset, tmp_path):
    dataset.search(limit=5).export_lmdb(tmp_path / "out")
    local = rc.open(tmp_path / "out")

    assert dataset.backing == RootObjects()
    assert local.backing == LmdbFolder(path=str(tmp_path / "out"))
    for one in (dataset, local):
        again = pickle.loads(pickle.dumps(one))
        assert again.backing == one.backing
        assert again.former_fingerprint is None
