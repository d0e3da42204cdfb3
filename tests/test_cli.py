"""The commands as a whole: all search options on all that take a selection, a quick start, no more than the library."""

import json
import subprocess
import sys
from dataclasses import asdict

import pyarrow as pa
import pytest
import shapely
import typer.main

import reben_cloud as rc
from reben_cloud import cli
from reben_cloud.cli.options import SEARCH
from reben_cloud.root.query import OPTIONS, Query
from reben_cloud.scenes.preparation import Preparation
from reben_cloud.scenes.run import run as run_preparation
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.commands import invoke as run
from tests.roots import synthetic_root
from tests.scenes import make_landscape

TAKE_A_SELECTION = {
    "build",
    "search",
    "suspects",
    "stream",
    "verify-epoch",
    "export",
    "evaluate",
    "predict",
    "bucket presign",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "root"
    synthetic_root(folder, 60)
    return folder


def commands(group=None, before=""):
    for name, child in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(child, "commands"):
            yield from commands(child, f"{before}{name} ")
        else:
            yield f"{before}{name}", child


def flags_of(name):
    return OPTIONS[name].flags.split("/")


def files_of():
    """Flag of a file -> its parameter."""
    return {option.file: f"{name}_file" for name, option in OPTIONS.items() if option.file}


def test_every_command_that_takes_a_selection_takes_every_condition():
    for name, command in commands():
        given = {
            flag: one.name
            for one in command.params
            if getattr(one, "rich_help_panel", None) == SEARCH
            for flag in (*one.opts, *one.secondary_opts)
        }

        expected = {flag: option for option in OPTIONS for flag in flags_of(option)} | files_of()
        if not any(one.name == "seed" for one in command.params):
            expected |= {"--seed": "sample_seed"}
        assert given == (expected if name in TAKE_A_SELECTION else {}), name


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_shows_the_conditions_in_a_group_of_their_own(name):
    result = run(*name.split(), "--help")

    own, heading, conditions = result.stdout.partition(f"\n{SEARCH}:\n")
    assert result.exit_code == 0
    assert bool(heading) == (name in TAKE_A_SELECTION)
    flags = {flag for option in OPTIONS for flag in flags_of(option)} | files_of().keys()
    assert flags <= set(conditions.replace(",", " ").split()) if heading else not conditions
    # `prepare` searches an API, by a box and a time of its own.
    assert flags & set(own.split()) == ({"--bbox", "--datetime"} if name == "prepare" else set())


def condition_cases(root):
    """Condition -> what is written after its flag, and the same in Python."""
    dataset = rc.open(root)
    first = dataset.search().patch_ids[:2]
    area = shapely.box(-10, 35, 20, 60).wkt
    month = "2017-06-01/2018-03-01"
    lists = {
        "labels": ["Coniferous forest", "Pastures"], "labels_all": ["Arable land"], "split": ["train", "test"],
        "country": ["Finland", "Austria"], "product": dataset.products[:2], "ids": first,
        "season": ["summer", "winter"], "sortby": ["-datetime", "id"], "has": ["zone"],
    }  # fmt: skip
    texts = {
        "bbox": "-10,35,20,60", "intersects": area, "datetime": month, "s1_datetime": month,
        "cql2": "country = 'Finland'", "limit": 7, "sample": 9,
        "share": "0.25/0.75",
    }  # fmt: skip
    found = {
        name: [word for value in values for word in (*flags_of(name), value)]
        for name, values in lists.items()
    }
    cases = {name: (words, {name: lists[name]}) for name, words in found.items()}
    cases |= {name: ([*flags_of(name), value], {name: value}) for name, value in texts.items()}
    for name in ("snow", "cloud", "recommended"):
        yes, no = flags_of(name)
        cases |= {name: ([yes], {name: True}), f"not {name}": ([no], {name: False})}
    for name, value in {"sample_seed": 3, "balance": "country", "min_distance_m": 2500.5}.items():
        cases[name] = (["--sample", "9", *flags_of(name), value], {"sample": 9, name: value})
    turned = [word for value in reversed(first) for word in (*flags_of("ids"), value)]
    cases["ids_order"] = ([*turned, *flags_of("ids_order")], {"ids": first[::-1], "ids_order": True})
    known = {"ids": [*first, "no-such-patch"], "missing_ok": True}
    words = [word for value in known["ids"] for word in (*flags_of("ids"), value)]
    cases["missing_ok"] = ([*words, *flags_of("missing_ok")], known)
    return cases


@pytest.mark.slow
def test_every_condition_finds_what_it_finds_in_python(root, tmp_path):
    cases = condition_cases(root)
    some = rc.open(root).search().patch_ids[::2]
    zones = pa.table({"patch_id": some, "code": list(range(len(some)))})
    layer = rc.write_table(tmp_path / "zone", rc.open(root), name="zone", table=zones)
    dataset = rc.open(root, layers=[layer])
    assert {name for name in cases if not name.startswith("not ")} == set(OPTIONS)
    for name, (words, query) in cases.items():
        result = run("search", root, "--layer", tmp_path / "zone", "--format", "ids", *words)

        assert result.exit_code == 0, result.stderr
        assert result.stdout.split() == dataset.search(**query).patch_ids, name


CONDITIONS = ["--season", "summer", "--season", "fall", "--limit", "5", "--sortby", "-id"]
"""Some that only `search` took at first."""

QUERY = Query(season=["summer", "fall"], limit=5, sortby="-id")


def test_a_selection_is_the_same_in_every_command(root, tmp_path):
    expected = rc.open(root).search(**QUERY.given()).patch_ids
    assert len(expected) == 5

    streamed = run("stream", root, *CONDITIONS, "--json")
    exported = run("export", root, tmp_path / "lmdb", *CONDITIONS, "--json")
    built = run("build", root, tmp_path / "part", *CONDITIONS, "--json")

    assert json.loads(streamed.stdout)["samples"] == 5
    assert exported.exit_code == 0, exported.stderr
    assert sorted(rc.open(tmp_path / "lmdb").search().patch_ids) == sorted(expected)
    assert json.loads(built.stdout)["num_patches"] == 5
    assert sorted(rc.open(tmp_path / "part").search().patch_ids) == sorted(expected)


def test_stream_has_the_options_of_the_loader(root):
    dataset = rc.open(root).search()
    whole = json.loads(run("stream", root, "--epochs", "3", "--json").stdout)
    options = [
        "--memory-bytes",
        "100000000",
        "--band",
        "B04",
        "--band",
        "VV",
        "--lanes",
        "4",
        "--window",
        "2",
    ]
    some = json.loads(run("stream", root, "--epochs", "3", *options, "--json").stdout)

    assert some["samples"] == whole["samples"] == 3 * len(dataset)
    assert some["bytes_read"] * 2 < whole["bytes_read"], "shards were read once, and not in every epoch"
    loader = RawLoader(dataset, epoch=2, bands=["B04", "VV"], lanes=4, window=2)
    for _ in loader:
        pass
    assert some["bytes_delivered"] == 3 * loader.stats().bytes_delivered < whole["bytes_delivered"]
    assert some["delivered"] == asdict(loader.stats().delivered)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--band", "B99"], "unknown band 'B99'", id="band"),
        pytest.param(["--lanes", "0"], "lanes must be at least 1", id="lanes"),
        pytest.param(["--memory-bytes", "-1"], "memory_bytes must not be negative", id="memory"),
        pytest.param(["--form", "zip"], "form must be 'shards' or 'zarr'", id="form"),
    ],
)
def test_what_the_loader_refuses_is_wrong_usage(root, options, message):
    result = run("stream", root, *options)

    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.s3
def test_links_are_made_for_any_condition(s3_bucket, root, monkeypatch):
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        store.put(str(path.relative_to(root)), path.read_bytes())

    result = run("bucket", "presign", store.url, *CONDITIONS)

    assert json.loads(result.stdout)["patch_ids"] == rc.open(root).search(**QUERY.given()).patch_ids


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--season", "autumn"], "unknown season 'autumn'", id="name"),
        pytest.param(["--intersects", "@/no/such/file"], "@/no/such/file cannot be read as text", id="file"),
        pytest.param(["--limit", "0"], "limit must be at least 1", id="number"),
        pytest.param(["--sample", "0"], "sample must be at least 1", id="sample"),
        pytest.param(["--sample-seed", "1"], "give sample=N too", id="seed of nothing"),
        pytest.param(["--sample", "5", "--balance", "labels"], "did you mean 'label'", id="balance"),
        pytest.param(["--sample", "5", "--min-distance", "-1"], "must be above 0 metres", id="distance"),
        pytest.param(["--ids", "/no/such/file"], "ids: /no/such/file cannot be read", id="file of ids"),
        pytest.param(["--ids", "x", "--id", "y"], "give --id or --ids, not both", id="ids twice"),
    ],
)
@pytest.mark.parametrize("command", ["search", "stream", "export", "build", "bucket presign"])
def test_a_wrong_condition_is_wrong_usage_in_every_command(root, tmp_path, command, words, message):
    places = [tmp_path / "new"] if command in ("export", "build") else []

    result = run(*command.split(), root, *places, *words)

    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert not any(tmp_path.iterdir())


def test_ids_may_stand_in_a_file(root, tmp_path):
    """What one search lists, another takes, in every form that says so, and in its order."""
    dataset = rc.open(root)
    expected = dataset.search(sample=7, sortby="-id").patch_ids
    file = tmp_path / "ids"
    words = ["--sample", "7", "--sortby", "-id"]
    for form in ("ids", "parquet"):
        file.write_bytes(run("search", root, *words, "--format", form).stdout_bytes)
        found = run("search", root, "--ids", file, "--ids-order", "--format", "ids")
        assert found.stdout.split() == expected, form

    exported = run("export", root, tmp_path / "lmdb", "--ids", file, "--ids-order", "--json")
    assert json.loads(exported.stdout)["num_patches"] == 7
    assert rc.open(tmp_path / "lmdb").search().patch_ids == dataset.search(ids=expected).patch_ids
    streamed = run("stream", root, "--ids", file, "--json")
    assert json.loads(streamed.stdout)["samples"] == 7


SAMPLE = ["--sample", "12", "--sample-seed", "5", "--balance", "label", "--min-distance", "3000"]
"""A sample as every command takes it."""


@pytest.mark.slow
def test_a_sample_is_the_same_in_every_command(root, tmp_path):
    query = Query(sample=12, sample_seed=5, balance="label", min_distance_m=3000)
    expected = rc.open(root).select(query).patch_ids
    assert len(expected) == 12

    searched = run("search", root, *SAMPLE, "--format", "ids")
    streamed = run("stream", root, *SAMPLE, "--json")
    exported = run("export", root, tmp_path / "lmdb", *SAMPLE)
    built = run("build", root, tmp_path / "part", *SAMPLE)

    assert searched.stdout.split() == expected
    assert json.loads(streamed.stdout)["samples"] == 12
    assert exported.exit_code == built.exit_code == 0, exported.stderr + built.stderr
    for folder in ("lmdb", "part"):
        assert sorted(rc.open(tmp_path / folder).search().patch_ids) == sorted(expected)


def test_a_sample_that_cannot_be_had_is_an_error_with_the_number_that_can(root):
    words = ["search", str(root), "--country", "Finland", "--sample", "61"]
    number = len(rc.open(root).search(country="Finland"))

    found = subprocess.run([sys.executable, "-m", "reben_cloud.cli", *words], capture_output=True, text=True)

    assert found.returncode == 1
    assert found.stdout == ""
    assert f"a sample of 61 patches cannot be had: {number} patches fit the other conditions" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_a_geometry_may_stand_in_a_file(root, tmp_path):
    shape = shapely.box(-10, 35, 20, 60)
    (tmp_path / "area.geojson").write_text(shapely.to_geojson(shape))

    result = run("search", root, "--intersects", f"@{tmp_path}/area.geojson", "--format", "ids")

    assert result.stdout.split() == rc.open(root).search(intersects=shape).patch_ids


@pytest.mark.parametrize(
    ("option", "expected"), [("--help", "Usage:"), ("--version", f"reben-cloud {rc.__version__}\n")]
)
def test_help_and_version_load_nothing_that_reading_needs(option, expected):
    code = (
        "import sys; sys.argv[1:] = [sys.argv[1]]\n"
        "from reben_cloud.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)

    heavy = {"numpy", "pyarrow", "shapely", "pyproj", "zarr", "xarray", "obstore", "rich", "torch", "boto3"}
    assert done.stdout.startswith(expected)
    assert not heavy & set(done.stderr.split())


def test_a_python_user_prepares_as_the_command_does(tmp_path):
    (tmp_path / "in").mkdir()
    scenes = make_landscape(tmp_path / "in", patches=2)
    given = {"land_cover": scenes / "clc.gpkg", "s2": [scenes / "s2"], "s1": [scenes / "s1"]}
    told = []

    made = run_preparation(Preparation(root=open_store(tmp_path / "root"), **given), on_prepared=told.extend)
    again = run_preparation(Preparation(root=open_store(tmp_path / "root"), **given))
    command = run(
        "prepare", "--clc", given["land_cover"], "--s2", scenes / "s2", "--s1", scenes / "s1", "--root",
        tmp_path / "root", "--json",
    )  # fmt: skip

    assert told == list(made.reports)
    assert made.to_text().startswith("published 4 patches at file://")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "root"]
    assert again.published_already
    assert again.manifest == made.manifest == rc.open(tmp_path / "root").manifest
    assert json.loads(command.stdout) == again.to_json() == {
        "root": made.root, "published_already": True, "num_patches": 4,
    }  # fmt: skip


def test_a_preparation_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give products"):
        Preparation(land_cover=tmp_path, out=tmp_path)
    with pytest.raises(ValueError, match="say where to"):
        Preparation(land_cover=tmp_path, s2=[tmp_path])
    with pytest.raises(ValueError, match="--worker-index goes with"):
        run_preparation(
            Preparation(land_cover=tmp_path, l1c=[tmp_path], out=tmp_path), worker_index=0, workers_total=2
        )


def test_seed_is_the_seed_of_a_sample_everywhere(root):
    def ids(*options):
        return run("search", root, "--sample", 5, *options).stdout.split("\n")

    assert ids("--seed", 3) == ids("--sample-seed", 3) != ids("--seed", 4)
    streamed = [
        run("stream", root, "--sample", 5, *options, "--batch-size", 5).stdout
        for options in (("--seed", 3), ("--seed", 3, "--sample-seed", 4))
    ]
    assert all("5 samples" in text for text in streamed)


def test_an_export_takes_its_dataset_as_an_option(root, tmp_path):
    assert run("export", tmp_path / "one", "--source", root, "--limit", 3).exit_code == 0
    assert run("export", root, tmp_path / "two", "--limit", 3).exit_code == 0
    assert rc.open(tmp_path / "one").search().patch_ids == rc.open(tmp_path / "two").search().patch_ids
    assert run("export", root, tmp_path / "x", "--source", root).exit_code == 2
    alone = run("export", root)
    assert alone.exit_code == 2
    assert "name the new folder too" in alone.output


@pytest.mark.slow
def test_a_closed_standard_output_is_said(root):
    command = f"{sys.executable} -m reben_cloud.cli search {root} --limit 1 >&-"

    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, text=True)

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("reben-cloud: standard output is closed; send it to a file")


@pytest.mark.slow
def test_a_system_that_lets_no_thread_start_is_said(root):
    # What threads are started with says so, as under a limit of processes, which root does not have.
    code = (
        "import sys, threading\n"
        'def refuse(*_, **__): raise RuntimeError("can\'t start new thread")\n'
        "threading._start_new_thread = threading._start_joinable_thread = refuse\n"
        f"sys.argv = ['reben-cloud', 'stream', {str(root)!r}]\n"
        "from reben_cloud.cli import main; main()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "can't start new thread: this machine or container allows no more threads" in done.stderr
