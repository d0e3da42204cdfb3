"""Studies: which runs there are, what they take and find, and that all ways of running them agree."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud import build, cli
from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, CLC
from reben_cloud.errors import ChecksumError, ConflictError, NotFoundError
from reben_cloud.layers import write_label_layer
from reben_cloud.root import layout
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import load_recipe
from reben_cloud.training.groups import GROUPINGS, group_numbers
from reben_cloud.training.metrics import label_metrics
from reben_cloud.training.models import ARCHITECTURES
from reben_cloud.training.study.forms import shown, to_csv, to_latex
from reben_cloud.training.study.grid import load_study, study_names
from reben_cloud.training.study.jobs import OUTCOME, free_slot
from reben_cloud.training.study.page import write_results
from reben_cloud.training.study.pictures import distance_plot
from reben_cloud.training.study.plan import Distances, distances_of, plan_study
from reben_cloud.training.study.run import run_study, write_finished
from reben_cloud.training.study.scores import Spread, differences, measures_of
from reben_cloud.training.study.tables import tables_of
from reben_cloud.training.train import train
from reben_cloud.training.truth import labels_of
from tests.clusters import local_cluster
from tests.conftest import PATIENT_S, free_port, processes_of, wait_for
from tests.roots import synthetic_root
from tests.studies import SMALL, small_study, study_file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "root"
    synthetic_root(folder, 239, num_products=6)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(root):
    return rc.open(root)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bits depend on the number of threads, and this machine has others at work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


# -- which runs there are ------------------------------------------------------------------------------


def test_a_study_is_all_combinations_of_its_axes(tmp_path):
    text = 'seeds = [1, 2]\n[axes]\nlr = [0.1, 0.01]\n[axes.bands]\nS1 = {bands = "S1"}\n"all & more" = {}\n'

    study = small_study(tmp_path, "recipe.train.country=Finland", text=text)

    assert study.axes == {"lr": ("0.1", "0.01"), "bands": ("S1", "all & more")}
    assert study.cells == list(product(("0.1", "0.01"), ("S1", "all & more")))
    assert [run.name for run in study.runs[:3]] == ["0.1-S1-seed1", "0.1-S1-seed2", "0.1-all_more-seed1"]
    assert [run.config.seed for run in study.runs] == [1, 2] * 4
    assert study.runs[0].config == replace(study.runs[2].config, bands="S1")
    assert {run.config.train.country for run in study.runs} == {"Finland"}
    assert study.name == study.title == "small"


def test_tables_of_a_recipe_are_merged_key_by_key(tmp_path):
    text = '[recipe.train]\nseason = "summer"\n[axes.place]\nhere = {train = {country = "Finland"}}\n'

    (only,) = small_study(tmp_path, text=text).runs

    assert only.config.train.given() == {
        "split": "train", "season": "summer", "country": "Finland", "recommended": True,
    }  # fmt: skip
    assert only.name == "here-seed42"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("epochs = 3", r"unknown key 'epochs'.*keys of a recipe stand in \[recipe\]", id="key"),
        pytest.param("seeds = 3", "list of different whole numbers, got 3", id="one seed"),
        pytest.param("seeds = [3, 3]", "different whole numbers", id="a seed twice"),
        pytest.param("[axes]\nseed = [1]", "seeds are no axis", id="an axis of seeds"),
        pytest.param("[recipe]\nseed = 1", "seed is given in a recipe", id="a seed of a recipe"),
        pytest.param("[axes]\nlr = 3", "axes.lr must be a list of values of the key lr", id="a number"),
        pytest.param("[axes]\nlr = []", "axes.lr must be a list", id="no value"),
        pytest.param("[axes]\nlr = [-1.0]", r"run 1\.0-seed42: lr must be above 0, got -1", id="a wrong value"),
        pytest.param("[axes]\nlrr = [1.0]", "unknown key 'lrr'", id="an unknown axis"),
        pytest.param("[axes.x]\na = {}\nb = {}", "a-seed42 and b-seed42 are the same recipe", id="twins"),
        pytest.param('[axes.x]\n"a b" = {}\n"A?b" = {lr = 0.1}', "would have the folder A_b-seed42", id="one folder"),
        pytest.param("recipe = 3", r"recipe is a table such as \[recipe\]", id="no table"),
        pytest.param("seeds = [[3]]", r"different whole numbers, got \[\[3\]\]", id="a list as a seed"),
        pytest.param("seeds = [3.5]", "different whole numbers", id="a seed that is no whole number"),
        pytest.param("base = 5", "base must be the name of a recipe or the path of one, got 5", id="no base"),
        pytest.param("[axes]\nlr = [0.1, 0.10]", "axes.lr has 0.1 twice", id="a value twice"),
        pytest.param(f"[axes.x]\n{'long' * 60} = {{lr = 0.1}}", "a name of 247 bytes, longlong", id="a long name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_study_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        small_study(tmp_path, text=text)


def test_a_study_that_is_no_text_is_named(tmp_path):
    (tmp_path / "odd.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(ValueError, match=r"odd\.toml is not valid TOML: 'utf-8' codec"):
        load_study(tmp_path / "odd.toml")


def test_tables_of_a_folder_without_a_study_are_refused(dataset, tmp_path):
    with pytest.raises(NotFoundError, match="out holds no study, so no run is finished there"):
        write_finished(small_study(tmp_path), dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [3, 4])
def test_the_median_of_distances_is_that_of_numpy(results, number):
    study, found = results
    metres = np.arange(number, dtype=float) ** 2
    distances = [Distances(cells=tuple(study.cells), metres=metres)]

    table = next(one for one in tables_of(study, found, distances) if one.name == "distances")

    row = dict(zip((*table.keys, *table.columns), table.rows[0], strict=True))
    assert row["median_m"] == round(float(np.median(metres)))


def test_an_unknown_study_is_refused_with_those_there_are():
    with pytest.raises(
        FileNotFoundError, match="no study 'papre': neither a TOML file nor one of few-labels, labels"
    ):
        load_study("papre")


def test_the_studies_of_the_package():
    studies = {name: load_study(name) for name in study_names()}

    assert studies.keys() == {"few-labels", "labels", "paper", "sensors", "split", "transfer"}
    assert studies["paper"].axes["architecture"] == ARCHITECTURES
    assert studies["paper"].axes["bands"] == ("S1", "S2", "S1+S2")
    for name in ARCHITECTURES:
        of_paper = next(one for one in studies["paper"].runs if one.name == f"{name}-S1+S2-seed42")
        assert of_paper.config == load_recipe(name)
    assert all(len(study.seeds) >= 3 and study.about for study in studies.values())


def test_the_countries_and_seasons_of_transfer_are_all_there_are(dataset):
    names = set(load_study("transfer").axes["learned from"]) - {"everything"}

    assert names == {*dataset.countries, "spring", "summer", "fall", "winter"}


# -- what they take ------------------------------------------------------------------------------------


def test_the_plan_counts_patches_and_steps(dataset, tmp_path):
    study = small_study(tmp_path, "recipe.train.share=0.5", "recipe.balanced=0.5")
    train = dataset.search(split="train", recommended=True, share=0.5)

    plan = plan_study(study, dataset)

    one = plan.runs[0]
    assert (one.num_train, one.num_test) == (len(train), len(dataset.search(split="test", recommended=True)))
    samples = round(train.balanced(0.5).repeats.weights.sum())
    assert one.steps_per_epoch == samples // 8 > len(train) // 8
    assert one.most_steps == 2 * one.steps_per_epoch
    assert one.most_samples == 2 * (one.steps_per_epoch * 8 + one.num_validation) + one.num_test
    assert plan.to_text().startswith(f"small: 4 runs, at most {4 * one.most_steps:,} steps")


def test_the_plan_of_neighbours_has_no_steps(dataset, tmp_path):
    study = small_study(tmp_path, "recipe.neighbours=5", "recipe.batch_size=4096")

    one, *_ = plan_study(study, dataset).runs

    assert (one.steps_per_epoch, one.most_steps) == (0, 0)
    assert one.most_samples == one.num_train + one.num_validation + one.num_test > 100


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param(["recipe.labels=v1:labels"], ValueError,
                     "no column 'v1:labels'.*BigEarthNet-v1.0.tar.gz.*reben-cloud layer labels", id="v1"),
        pytest.param(["recipe.test_labels=mine:x"], ValueError, "no column 'mine:x'; name the table layer", id="layer"),
        pytest.param(["recipe.test.split=train"], ValueError, "S1-seed1: .* test patches are also learned", id="test"),
        pytest.param(["recipe.train.split=any", "recipe.train.share=0/0.5", "recipe.test.share=0.5/1"], ValueError,
                     "S1-seed1: .* validation patches are also learned", id="validation"),
        pytest.param(["recipe.batch_size=4096"], ValueError, "not one step; take a smaller batch_size", id="batch"),
        pytest.param(["recipe.train.country=Kosovo"], NotFoundError, "run S1-seed1, train: no patch", id="nothing"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_the_first_run(dataset, tmp_path, changes, error, message):
    study = small_study(tmp_path, *changes)

    with pytest.raises(error, match=message):
        run_study(study, dataset, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_distances_are_those_of_the_split(dataset):
    study = load_study("split", overrides=["recipe.batch_size=8"])

    geographic, random = distances_of(study, dataset)

    test = dataset.search(split="test", recommended=True, share="0.75/1")
    assert len(geographic.metres) == len(random.metres) == len(test)
    assert geographic.cells == (("geographic",),)
    assert geographic.metres.min() > 1000
    assert np.median(random.metres) < np.median(geographic.metres) / 3
    assert 0 < random.share_within(2500) <= random.share_within(1e9) == 1


def test_the_few_labels_are_nested(dataset):
    rows = [
        set(dataset.select(run.config.train).rows)
        for run in load_study("few-labels").runs
        if run.name.startswith("resnet50") and run.config.seed == 42
    ]

    assert rows[0] <= rows[1] <= rows[2] < rows[3]


# -- what they find ------------------------------------------------------------------------------------


def made_up(study, dataset, quality):
    """Results of predictions that are the better the higher the quality of a cell, and logs of such runs."""
    selection = dataset.select(study.runs[0].config.test)
    truth = torch.from_numpy(labels_of(selection)).float()
    found = {}
    for run_ in study.runs:
        noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(run_.config.seed))
        mixed = (quality[run_.variants] * truth + noise) / (1 + quality[run_.variants])
        groups = {one: group_numbers(selection, one) for one in GROUPINGS}
        by = {
            one: {
                name: label_metrics(mixed[numbers == n], truth[numbers == n]) for n, name in enumerate(names)
            }
            for one, (names, numbers) in groups.items()
        }
        extra = {"subset": "test", "best_epoch": 0, "validation_score": 0.5, "by": by}
        found[run_.name] = {**label_metrics(mixed, truth), **extra}
    return found


@pytest.fixture
def results(dataset, tmp_path):
    study = small_study(tmp_path)
    return study, made_up(study, dataset, {("S1",): 0.1, ("RGB",): 2.0})


def test_means_and_deviations_are_over_seeds(dataset, results):
    study, found = results

    tables = {one.name: one for one in tables_of(study, found, distances_of(study, dataset))}
    rows = list(csv.DictReader(io.StringIO(to_csv(tables["scores"]))))

    values = [found[f"S1-seed{seed}"]["macro"]["ap"] for seed in (1, 2)]
    assert float(rows[0]["ap_macro"]) == pytest.approx(np.mean(values))
    assert float(rows[0]["ap_macro_std"]) == pytest.approx(np.std(values, ddof=1))
    assert [row["bands"] for row in rows] == ["S1", "RGB"]
    per_class = list(csv.DictReader(io.StringIO(to_csv(tables["per_class"]))))
    assert [row["class"] for row in per_class] == list(CLASSES_ALPHABETICAL)
    label = per_class[2]["class"]
    assert per_class[2]["RGB"] == "" or float(per_class[2]["RGB"]) == pytest.approx(
        np.mean([found[f"RGB-seed{seed}"]["per_class"][label]["ap"] for seed in (1, 2)])
    )
    country = next(csv.DictReader(io.StringIO(to_csv(tables["by_country"]))))
    name = list(country)[1]
    in_country = [found[f"S1-seed{seed}"]["by"]["country"][name]["macro"]["ap"] for seed in (1, 2)]
    assert float(country[name]) == pytest.approx(np.mean(in_country))
    sizes = [found["S1-seed1"]["by"]["country"][one]["num_patches"] for one in tables["by_country"].columns]
    heads = [f"{one} ({n})" for one, n in zip(tables["by_country"].columns, sizes, strict=True)]
    assert list(tables["by_country"].heads) == heads
    seasons = [one for one in ("spring", "summer", "fall", "winter") if one in tables["by_season"].columns]
    assert list(tables["by_season"].columns) == seasons
    assert len(seasons) > 2
    assert tables["differences"].keys == ("axis", "variant", "beside")
    assert tables.keys() == {
        "scores",
        "per_class",
        "by_country",
        "by_season",
        "differences",
        "distances",
        "runs",
    }


def test_differences_are_of_pairs_with_one_seed(results):
    study, found = results
    measures = measures_of(found)

    (one,) = differences(study, found, measures)
    del found["S1-seed2"]
    (fewer,) = differences(study, found, measures)

    pairs = [found[f"RGB-seed{seed}"]["macro"]["ap"] - found["S1-seed1"]["macro"]["ap"] for seed in (1,)]
    assert (one.axis, one.first, one.variant, one.others) == ("bands", "S1", "RGB", ())
    assert len(one.changes[0].values) == 2
    assert one.changes[0].mean > 0.1
    assert fewer.changes[0].values == pytest.approx(pairs)
    assert np.isnan(fewer.changes[0].deviation)


def test_latex_escapes_and_marks_the_best(dataset, results):
    study, found = results

    tables = {one.name: one for one in tables_of(study, found, distances_of(study, dataset))}
    scores, changes = to_latex(tables["scores"]), to_latex(tables["differences"])

    lines = scores.splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrr}"
    assert all(line.count("&") == 5 for line in lines if line.endswith(r"\\"))
    best = next(line for line in lines if line.startswith("RGB"))
    assert best.count(r"\textbf{") == 4
    assert r"\textbf{" not in next(line for line in lines if line.startswith("S1"))
    assert r" $\pm$ " in best
    assert "& +0." in changes
    assert r"\textbf" not in changes
    first, second = tables["scores"].rows
    tied = replace(tables["scores"], rows=(first, second, second), tests=("x",) * 3)
    assert to_latex(tied).count(r"\textbf{") == 2 * best.count(r"\textbf{")
    assert r"\textbf{" not in to_latex(replace(tables["scores"], rows=(second, second)))
    # A score on other patches, or by other labels, is no better or worse one.
    assert r"\textbf{" not in to_latex(replace(tables["scores"], tests=("x", "y")))
    head = replace(tables["scores"], keys=('a_b & < 50 % "x"',))
    assert r"a\_b \& \textless{} 50 \% ''x''" in to_latex(head)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(Spread((0.5, 0.7)), "0.600 ± 0.141", id="a mean"),
        pytest.param(Spread((0.5,)), "0.500", id="one seed"),
        pytest.param(Spread(()), "–", id="nothing"),
        pytest.param(None, "–", id="none"),
        pytest.param(-0.25, "−0.250", id="below zero"),
        pytest.param(12345.6, "12,346", id="metres"),
        pytest.param(12345, "12,345", id="a count"),
    ],
)
def test_values_for_people(value, text):
    assert shown(value) == text
    assert shown(Spread((0.25,)), is_signed=True) == "+0.250"


class Links(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_patches_of_no_country_have_a_column_with_a_name(dataset, results):
    study, found = results
    for one in found.values():
        one["by"]["country"] = {"": one["by"]["country"].pop("Finland"), **one["by"]["country"]}

    tables = {one.name: one for one in tables_of(study, found, distances_of(study, dataset))}

    assert not any("Finland" in head for head in tables["by_country"].heads)
    assert to_csv(tables["by_country"]).startswith("bands,none,none_std,")


def test_the_next_patch_is_where_patches_of_this_size_have_it(dataset, results):
    study, _ = results

    figure = distance_plot(study, distances_of(study, dataset), patch_m=2_400)

    (axes,) = figure.axes
    assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == ":"] == [[2.4, 2.4]]
    assert [text.get_position()[0] for text in axes.texts] == [2.4]


@pytest.mark.slow
def test_the_page_shows_every_table_and_plot(dataset, results, tmp_path):
    study, found = results
    for name in found:
        (tmp_path / "runs" / name / "report").mkdir(parents=True)
        (tmp_path / "runs" / name / "log.csv").write_text("step,validation_score\n1,\n2,0.25\n4,0.5\n")
        (tmp_path / "runs" / name / "report" / "metrics.json").write_text("{}")
    del found["S1-seed2"]

    page = write_results(tmp_path / "results", study, found, dataset, runs="../runs")

    links, text = Links(), page.read_text()
    links.feed(text)
    assert links.open == []
    files = [one for one in links.found if not one.startswith("..")]
    written = {path.name for path in page.parent.iterdir()} - {"index.html"}
    assert written <= set(files)
    assert all((page.parent / one).is_file() for one in links.found)
    assert "Is it &lt;quick&gt;? See <code>scores</code>." in text
    assert "Not finished:</strong> S1-seed2" in text
    for path in page.parent.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors(256)) > 10


# -- running them --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A study that ran in this process, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    study = small_study(folder)
    result = run_study(study, dataset, folder / "out")
    assert (result.num_finished, result.num_skipped, result.failed) == (4, 0, {})
    return study, folder / "out"


def scores(folder):
    return (folder / "results" / "scores.csv").read_text()


@pytest.mark.slow
def test_a_second_call_finds_all_done(finished, dataset):
    study, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob(OUTCOME)}

    again = run_study(study, dataset, folder, on_step=pytest.fail)
    page = folder / "results" / "index.html"
    text = page.read_text()
    page.unlink()

    assert write_finished(study, dataset, folder) == again
    assert page.read_text() == text
    assert (again.num_finished, again.num_skipped) == (4, 4)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob(OUTCOME)} == before
    assert len(before) == 4
    runs = list(csv.DictReader((folder / "results" / "runs.csv").open()))
    outcome = json.loads((folder / "runs" / "RGB-seed2" / OUTCOME).read_text())["result"]
    assert float(runs[3]["ap_macro"]) == outcome["macro"]["ap"]
    assert float(runs[3]["ap_macro_low"]) == outcome["intervals"]["macro"]["ap"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(["recipe.lr=0.5"], "runs.S1-seed1.lr is 0.001 there, not 0.5", id="a value"),
        pytest.param(["seeds=[1,2,3]"], "runs.S1-seed3 is new", id="a seed more"),
        pytest.param(["seeds=[1]"], "it has runs.S1-seed2, which is no longer asked for", id="a seed less"),
        pytest.param(["recipe.test.country=Finland"], r"runs.S1-seed1.test.country is new", id="a condition"),
    ],
)
def test_a_changed_study_is_refused_with_what_differs(finished, dataset, tmp_path, changes, message):
    study = small_study(tmp_path, *changes)

    with pytest.raises(ConflictError, match=f"holds another study: {message}; choose another folder"):
        run_study(study, dataset, finished[1])


@pytest.mark.slow
def test_another_dataset_is_refused_and_a_damaged_outcome_named(finished, dataset, tmp_path):
    study, folder = finished
    synthetic_root(tmp_path / "root", 113)
    layer = rc.write_table(
        tmp_path / "layer", dataset, name="x", table=pa.table({"patch_id": dataset.selection.patch_ids[:1], "y": [1]})
    )  # fmt: skip

    with pytest.raises(ConflictError, match=r"dataset is '.*' there"):
        run_study(study, rc.open(tmp_path / "root"), folder)
    with pytest.raises(ConflictError, match=r"layers\.x is new"):
        run_study(study, dataset.with_layers(layer), folder)
    with pytest.raises(ConflictError, match="draws is 1000 there, not 5"):
        run_study(study, dataset, folder, draws=5)
    facts = folder / "study.json"
    text = facts.read_text()
    older = json.loads(text)
    for config in older["runs"].values():
        del config["ema"]  # as releases before it had them
    facts.write_text(json.dumps(older))
    assert write_finished(study, dataset, folder).num_finished == 4
    facts.write_text(text.replace('"lr"', '"rl"'))
    with pytest.raises(ConflictError, match="not of a study of this release"):
        run_study(study, dataset, folder)
    facts.write_text(text)
    outcome = folder / "runs" / "S1-seed1" / OUTCOME
    text = outcome.read_text()
    outcome.write_text(text[:50])
    with pytest.raises(ChecksumError, match="delete it, and the run is measured again"):
        run_study(study, dataset, folder)
    outcome.write_text(text)


def command(root, folder, *more):
    toml = study_file(folder.parent)
    arguments = ["study", toml, "--root", root, "--out", folder, *more]
    return [sys.executable, "-m", "reben_cloud.cli", *map(str, arguments)]


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_started_again_it_ends_with_the_same_scores(finished, root, tmp_path, workers):
    folder = tmp_path / "out"
    begun = command(root, folder, "--workers", workers)
    with subprocess.Popen(
        begun, env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            wait_for(
                lambda: (
                    list(folder.glob(f"runs/*/{OUTCOME}")) and len(list(folder.glob("runs/*/last.pt"))) > 1
                )
            )
        finally:
            process.send_signal(signal.SIGKILL)
    # Its workers notice within half a second; until then each may finish the run that it holds, and begin another.
    wait_for(lambda: not processes_of(process.pid))
    done = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"runs/*/{OUTCOME}")}
    assert 0 < len(done) < 4

    again = subprocess.run(begun, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=True)

    assert f"4 of 4 runs are finished, {len(done)} of them before" in again.stdout
    assert scores(folder) == scores(finished[1])
    assert {name: (folder / "runs" / name / OUTCOME).stat().st_mtime_ns for name in done} == done


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed.*")
@pytest.mark.filterwarnings("ignore:.*Sending large graph.*:UserWarning")
def test_a_dask_cluster_finds_the_same(finished, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with local_cluster(1, threads=2) as cluster:
        result = run_study(
            finished[0], dataset, tmp_path / "out", executor=build.dask(cluster.scheduler_address)
        )

    assert result.num_finished == 4
    assert scores(tmp_path / "out") == scores(finished[1])


@pytest.mark.slow
def test_torchrun_does_each_run_with_all_processes(dataset, root, tmp_path):
    ports = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    begun = command(root, tmp_path / "out", "--set", "seeds=[1]", "--draws", "0")
    together = [sys.executable, *ports, *begun[1:]]

    done = subprocess.run(
        together, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=2 * PATIENT_S
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 runs are finished") == 1
    found = json.loads((tmp_path / "out" / "runs" / "RGB-seed1" / OUTCOME).read_text())["result"]
    assert found["num_patches"] == len(dataset.search(split="test", recommended=True))
    steps = len(dataset.search(split="train", recommended=True)) // 8
    assert found["delivered"]["0"]["samples"] == steps * 8


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(root, dataset, tmp_path):
    grid = '[axes]\nlr = [1e30, 0.001]\n[axes.model]\nconv = {}\nvit = {architecture = "test_vit"}\n'
    text = SMALL.split("[axes")[0].replace("[1, 2]", "[1]") + grid
    arguments = ["study", study_file(tmp_path, text), "--root", root, "--out", tmp_path / "out"]

    first = run(*arguments, "--json")
    again = run(*arguments)

    assert (first.exit_code, again.exit_code) == (1, 1)
    said = json.loads(first.stdout)
    assert (said["num_finished"], said["num_runs"]) == (1, 4)
    assert list(said["failed"]) == ["1e+30-conv-seed1", "1e+30-vit-seed1", "0.001-vit-seed1"]
    assert "NotFiniteError" in said["failed"]["1e+30-conv-seed1"]
    # Its patches of 16 px do not fit 120.
    assert "test_vit does not take images of 120 x 120 pixels" in said["failed"]["0.001-vit-seed1"]
    assert "1 of 4 runs are finished, 1 of them before" in again.stdout
    assert "Not finished" in (tmp_path / "out" / "results" / "index.html").read_text()
    table = list(csv.DictReader(io.StringIO(scores(tmp_path / "out"))))
    assert [row["num_seeds"] for row in table] == ["0", "0", "1", "0"]
    assert table[0]["ap_macro"] == ""


def test_slots_go_to_one_process_each(tmp_path):
    with free_slot(tmp_path, 2) as first, free_slot(tmp_path, 2) as second, free_slot(tmp_path, 2) as third:
        assert (first, second) == (0, 1)
        assert third in (0, 1)
    with free_slot(tmp_path, 2) as again:
        assert again == 0


def test_the_command_lists_studies_and_says_what_they_take(root, tmp_path):
    listed = run("study", "--list")
    planned = run("study", study_file(tmp_path), "--root", root, "--dry-run", "--json")
    without = run("study", "paper")

    assert [line.split()[0] for line in listed.stdout.splitlines()] == study_names()
    runs = json.loads(planned.stdout)["runs"]
    assert [one["name"] for one in runs] == ["S1-seed1", "S1-seed2", "RGB-seed1", "RGB-seed2"]
    assert runs[0]["most_steps"] == 2 * (runs[0]["num_train"] // 8)
    assert without.exit_code == 2
    assert "--root" in without.stderr


# -- labels of others ----------------------------------------------------------------------------------


def v1_folder(folder, dataset, rows):
    """Files as BigEarthNet v1 has them, with the first of a patch's classes alone, as CORINE names."""
    names = {one.label: one.name for one in CLC.values() if one.label}
    table = dataset.selection.columns([layout.column("s2v1_name"), layout.LABELS]).to_pylist()
    for row in rows:
        name, labels = table[row][layout.column("s2v1_name")], table[row][layout.LABELS]
        place = folder / name
        place.mkdir(parents=True)
        shown_ = [names[labels[0]], "Airports"]  # which has no class of the 19
        (place / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": shown_, "projection": "x"}))
    return [table[row][layout.LABELS][0] for row in rows]


def test_labels_of_version_1_become_a_layer(dataset, tmp_path):
    rows = range(0, len(dataset), 2)
    firsts = v1_folder(tmp_path / "v1", dataset, rows)

    layer = write_label_layer(tmp_path / "layer", dataset, tmp_path / "v1", name="v1")

    beside = dataset.with_layers(layer)
    some = beside.search(has="v1")
    found = labels_of(some, "v1:labels")
    assert some.rows.tolist() == list(rows)
    assert found.sum(1).tolist() == [1] * len(rows)
    assert [CLASSES_ALPHABETICAL[n] for n in found.argmax(1)] == firsts
    np.testing.assert_array_equal(labels_of(some), dataset.schema.classes.encode(some.column(layout.LABELS)))
    with pytest.raises(ValueError, match=r'patches have no v1:labels, the first is .* has = "v1"'):
        labels_of(beside.selection, "v1:labels")
    with pytest.raises(ValueError, match="no column 'v1:label'"):
        labels_of(some, "v1:label")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        pytest.param(None, NotFoundError, "no such file or folder", id="nothing"),
        pytest.param({}, NotFoundError, "no file named <patch>_labels_metadata.json", id="an empty folder"),
        pytest.param({"a_labels_metadata.json": "[]"}, rc.RebenError, "not labels of BigEarthNet v1", id="no labels"),
        pytest.param({"a_labels_metadata.json": '{"labels": ["Lava"]}'}, rc.RebenError, "'Lava' is neither", id="name"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named(dataset, tmp_path, labels, error, message):
    if labels is not None:
        (tmp_path / "v1").mkdir()
    for name, text in (labels or {}).items():
        (tmp_path / "v1" / name).write_text(text)

    with pytest.raises(error, match=message):
        write_label_layer(tmp_path / "layer", dataset, tmp_path / "v1", name="v1")


def test_a_table_of_names_is_a_layer_too(root, dataset, tmp_path):
    few = dataset.selection.patch_ids[:3]
    table = pa.table({"patch_id": few, "labels": [["Pastures"], ["Sea and ocean", "Pastures"], []]})
    pa.parquet.write_table(table, tmp_path / "labels.parquet")

    made = run("layer", "labels", tmp_path / "labels.parquet", root, tmp_path / "layer", "--name", "mine")

    assert made.exit_code == 0, made.stderr
    beside = rc.open(root, layers=[str(tmp_path / "layer")])
    found = labels_of(beside.search(ids=few, ids_order=True), "mine:labels")
    assert [[CLASSES_ALPHABETICAL[n] for n in np.flatnonzero(row)] for row in found] == [
        ["Pastures"], ["Marine waters", "Pastures"], [],
    ]  # fmt: skip


@pytest.mark.slow
def test_the_study_of_labels_learns_and_is_tested_by_either(dataset, tmp_path):
    v1_folder(tmp_path / "v1", dataset, range(len(dataset)))
    layer = write_label_layer(tmp_path / "layer", dataset, tmp_path / "v1", name="v1")
    beside = dataset.with_layers(layer)
    small = [
        f"recipe.{one}"
        for one in ("architecture=test_resnet", "epochs=1", "batch_size=8", "drop_path_rate=0.0")
    ]
    study = load_study("labels", overrides=["seeds=[1]", *small])

    result = run_study(study, beside, tmp_path / "out", draws=0)

    assert result.num_finished == 4
    assert len(list((tmp_path / "out").glob("runs/*/best"))) == 2
    found = {
        path.parent.name: json.loads(path.read_text())["result"]
        for path in (tmp_path / "out").glob(f"runs/*/{OUTCOME}")
    }
    test = beside.search(split="test", recommended=True)
    for name, one in found.items():
        by = "v1:labels" if name.endswith("v1_labels-seed1") else ""
        positives = labels_of(test, by).sum(0)
        assert [values["num_positives"] for values in one["per_class"].values()] == positives.tolist()
    # What was learned differs: fewer labels make a loss of another size from the first step on.
    losses = [
        float(
            next(csv.DictReader((tmp_path / "out" / "runs" / name / "log.csv").open()))["validation_loss"]
            or 0
        )
        for name in ("v2_labels-v2_labels-seed1", "v1_labels-v2_labels-seed1")
    ]
    assert losses[0] != losses[1]


MEASURED_TWICE = """
[recipe]
architecture = "test_resnet"
epochs = 1
batch_size = 8
bands = "S1"
drop_path_rate = 0.0

[axes.tested]
all = {}
summer = { test.season = "summer" }
"""


@pytest.mark.slow
def test_runs_that_differ_in_their_test_alone_learn_once(dataset, tmp_path):
    study = small_study(tmp_path, text=MEASURED_TWICE)
    all_, summer = study.runs
    place = tmp_path / "out"

    result = run_study(study, dataset, place, draws=3)

    assert (result.num_finished, result.failed) == (2, {})
    assert [[run.name for run in runs] for runs in study.trainings()] == [[all_.name, summer.name]]
    kept = {path.relative_to(place / "runs").as_posix() for path in place.glob("runs/*/*")}
    assert {
        f"{all_.name}/best",
        f"{all_.name}/log.csv",
        f"{summer.name}/report",
        f"{summer.name}/outcome.json",
    } <= kept
    assert not {f"{summer.name}/{name}" for name in ("best", "last.pt", "log.csv")} & kept
    outcome = json.loads((place / "runs" / summer.name / OUTCOME).read_text())
    assert outcome["learned_by"] == all_.name
    by_itself = train(summer.config, dataset, tmp_path / "alone", draws=3)
    assert outcome["result"] == json.loads(json.dumps(by_itself))
    assert "have one model: 1 were to be trained" in (place / "results" / "index.html").read_text()

    # Gone on with, only what is missing is measured.
    (place / "runs" / summer.name / OUTCOME).unlink()
    before = (place / "runs" / all_.name / "last.pt").stat().st_mtime_ns
    again = run_study(study, dataset, place, draws=3, on_step=pytest.fail)
    assert (again.num_finished, again.num_skipped) == (2, 1)
    assert json.loads((place / "runs" / summer.name / OUTCOME).read_text()) == outcome
    assert (place / "runs" / all_.name / "last.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_where_learning_fails_those_that_measure_it_say_so(dataset, tmp_path):
    study = small_study(tmp_path, "recipe.lr=1e30", text=MEASURED_TWICE)

    failed = run_study(study, dataset, tmp_path / "out", draws=0).failed

    assert "NotFiniteError" in failed["all-seed42"]
    assert failed["summer-seed42"].endswith(
        "there is no model to measure, as all-seed42 failed, which learns the same"
    )


def test_neighbours_and_what_decides_weights_are_not_shared(tmp_path):
    study = small_study(tmp_path, text=MEASURED_TWICE + "[axes.rate]\na = {}\nb = {lr = 0.1}\n")
    voting = small_study(tmp_path, "recipe.neighbours=5", text=MEASURED_TWICE)

    assert [[run.name for run in runs] for runs in study.trainings()] == [
        ["all-a-seed42", "summer-a-seed42"], ["all-b-seed42", "summer-b-seed42"],
    ]  # fmt: skip
    assert [len(runs) for runs in voting.trainings()] == [1, 1]


def test_the_plan_tells_what_learns_nothing_itself(dataset, tmp_path):
    plan = plan_study(small_study(tmp_path, text=MEASURED_TWICE), dataset)

    first, second = plan.runs
    assert (first.learned_by, second.learned_by) == ("", first.name)
    assert (second.most_steps, second.steps_per_epoch, second.most_samples) == (0, 0, second.num_test)
    assert f"measures the model of {first.name}" in plan.to_text().splitlines()[2]
    with compute_context() as compute:
        assert compute.world_size == 1
