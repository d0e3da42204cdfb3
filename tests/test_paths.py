"""What a path argument means, wherever one is taken: paths, ``file://`` URLs, and schemes that are refused."""

import contextlib
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer

import reben_cloud as rc
from reben_cloud import cli
from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.build import make_plan
from reben_cloud.cli import options
from reben_cloud.cli.demo import run_demo
from reben_cloud.files.paths import local_path, split_scheme
from reben_cloud.root.query import OPTIONS
from reben_cloud.scenes.class_table import load_class_table
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import normalise_url, open_store
from reben_cloud.stream import RawLoader
from reben_cloud.training.config import load_recipe
from tests.roots import synthetic_root

PARSERS = {options.path, options.whole_path, options.path_or_url, options.new_root, options.name_or_path}

NOT_PATHS = {
    # Conditions of a search; a geometry may be @ and a file, which goes through `local_path`.
    *(name for name, option in OPTIONS.items() if option.kind in ("text", "names")),
    *(
        "modality",
        "near",
        "near_column",
        "column",
        "resampling",
        "band",
        "bands",
        "layout",
        "digest",
        "suffix",
        "units",
        "title",
        "picture",
        "percentiles",
        "order",
        "form",
        "change",
        "code_column",
        "dem_datum",
        "host",
        "endpoint_url",
        "dask",
        "name",
        "prefix",
        "principal",
        "public_url",
        "root_path",
        "forwarded_allow_ips",
        "s1_direction",
        "country_field",
        "layer_resampling",
        "layer_pixel",
    ),
    # URLs of APIs, what they have, and where tokens are to be had.
    *("stac", "collection", "stac_token", "s1_stac", "s1_collection"),
    # A name and a path, which `layers.raster` takes by the one function.
    "layer",
    # Names of programs.
    *("sen2cor", "gpt", "sarsen"),
}
"""Options whose text is no path. A new option belongs here, or has one of the parsers."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paths") / "root"
    synthetic_root(folder, 12)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("/data/x", (None, "/data/x"), id="a path"),
        pytest.param("C:/data", (None, "C:/data"), id="a drive letter"),
        pytest.param("C:\\data", (None, "C:\\data"), id="a drive letter with backslashes"),
        pytest.param("run:3", (None, "run:3"), id="a name with a colon"),
        pytest.param("2026-01-01T10:30/x", (None, "2026-01-01T10:30/x"), id="a time in a name"),
        pytest.param("run:/x", (None, "run:/x"), id="a folder with a colon at its end"),
        pytest.param("./s3://x", (None, "./s3://x"), id="said to be a path"),
        pytest.param("s3://bucket/x", ("s3", "bucket/x"), id="s3"),
        pytest.param("S3://bucket/x", ("s3", "bucket/x"), id="upper case"),
        pytest.param("s3:/bucket/x", ("s3", "bucket/x"), id="s3 by pathlib"),
        pytest.param("any+thing.1://x", ("any+thing.1", "x"), id="an unknown scheme"),
        pytest.param("file:///a/b", ("file", "/a/b"), id="file"),
    ],
)
def test_schemes_are_told_from_paths(text, expected):
    assert split_scheme(text) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("file:///a/b%20c", "/a/b c", id="percent-decoded"),
        pytest.param("file://localhost/a", "/a", id="localhost"),
        pytest.param("FILE://LocalHost/a", "/a", id="upper case"),
        pytest.param("file:/a", "/a", id="one slash"),
        pytest.param("file:///a#b?c", "/a#b?c", id="nothing is cut off"),
        pytest.param("a:b", "a:b", id="a colon"),
        pytest.param("/a%20b", "/a%20b", id="paths are not decoded"),
        pytest.param(Path("x"), "x", id="a Path"),
    ],
)
def test_a_local_path_is_what_it_says(given, expected):
    assert local_path(given) == Path(expected)


@pytest.mark.parametrize(
    "given", ["file://server/share", "s3://b/x", "s3:/b/x", Path("s3://b/x"), "hf://a/b", "", " "]
)
def test_what_is_not_of_this_machine_is_refused(given):
    with pytest.raises(ValueError, match=r"on this machine|an empty string"):
        local_path(given)


def test_a_file_url_names_the_same_store_in_every_spelling(tmp_path):
    folder = tmp_path / "a b#c"

    spellings = [
        str(folder),
        f"file://{tmp_path}/a b#c",
        folder.as_uri(),
        folder.as_uri().replace("//", "//localhost"),
    ]

    assert {normalise_url(text) for text in spellings} == {folder.as_uri()}
    assert open_store(spellings[-1]).local_path("x") == folder / "x"


def texts_of(typer_app):
    """(command, parameter) -> its parser, for each parameter of each command that is a text or a path."""
    found = {}
    for entry in typer_app.registered_commands:
        hints = typing.get_type_hints(entry.callback, include_extras=True)
        for name, hint in hints.items():
            if name != "return" and re.search(r"\b(str|Path)\b", str(typing.get_args(hint)[0])):
                found[entry.callback.__name__, name] = typing.get_args(hint)[1].parser
    for group in typer_app.registered_groups:
        found |= texts_of(group.typer_instance)
    return found


def test_every_text_of_every_command_is_a_path_by_the_one_function_or_is_listed_as_none():
    texts = texts_of(cli.app)

    assert not [key for key, parser in texts.items() if parser not in PARSERS and key[1] not in NOT_PATHS]
    assert sum(parser in PARSERS for parser in texts.values()) >= 30
    assert {name for _, name in texts if name in NOT_PATHS} == NOT_PATHS


@pytest.mark.parametrize("value", ["s3://bucket/x", "ftp://host/x", "file://elsewhere/x", ""])
def test_the_parsers_of_local_things_refuse_what_is_elsewhere(value):
    with pytest.raises(typer.BadParameter):
        options.path(value)


def test_roots_are_written_to_folders_and_buckets_alone():
    for value in ("s3://b/x", "az://c/x", "abfs://c/x", "gs://b/x"):
        assert options.new_root(value) == value
    for value in ("http://host/x", "memory://x", "lmdb://x", ""):
        with pytest.raises(typer.BadParameter):
            options.new_root(value)


TAKE_A_PATH = {
    "export_lmdb": lambda root, url, _: rc.open(root).search().export_lmdb(url),
    "cache_dir": lambda root, url, _: RawLoader(rc.open(root).search(), cache_dir=url),
    "scratch": lambda root, url, _: make_plan(
        *open_source(root), open_store(root.parent / "new"), scratch=url
    ),
    "load_recipe": lambda _, url, __: load_recipe(url),
    "load_countries": lambda _, url, __: load_countries(url),
    "load_class_table": lambda _, url, __: load_class_table(url),
    "read_official": lambda _, url, __: read_official([url]),
    "run_demo": lambda _, url, __: run_demo(url),
}


@pytest.mark.parametrize("name", TAKE_A_PATH)
def test_functions_refuse_urls_and_write_nothing(name, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="must be on this machine, got 's3://bucket/x'"):
        TAKE_A_PATH[name](root, "s3://bucket/x", tmp_path)

    assert not os.listdir(tmp_path)


def test_models_and_reports_go_to_folders_alone(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    from reben_cloud.training.models import load_pretrained, save_model
    from reben_cloud.training.report import write_report
    from reben_cloud.training.train import train

    monkeypatch.chdir(tmp_path)
    nothing = dict.fromkeys(("spec", "model", "selection"))
    for call in (
        lambda url: save_model(url, None, None),
        load_pretrained,
        lambda url: write_report(url, {}, None, **nothing),
        lambda url: train(load_recipe("resnet50"), None, url),
    ):
        with pytest.raises(ValueError, match="must be on this machine, got 's3://bucket/x'"):
            call("s3://bucket/x")

    assert not os.listdir(tmp_path)


def command(folder, *arguments):
    words = [sys.executable, "-m", "reben_cloud.cli", *map(str, arguments)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_export_to_a_bucket_is_refused_and_to_a_file_url_done(root, tmp_path):
    refused = command(tmp_path, "export", root, "s3://bucket/x")
    folder = tmp_path / "a b"
    done = command(tmp_path, "export", root.as_uri(), folder.as_uri())

    assert refused.returncode == 2
    assert "aws s3 cp" in refused.stderr
    assert "12 patches" in done.stdout
    assert (folder / "data.mdb").is_file()
    assert os.listdir(tmp_path) == ["a b"]
    with contextlib.chdir(tmp_path):
        assert len(rc.open(f"file://localhost{folder}".replace(" ", "%20"))) == 12
