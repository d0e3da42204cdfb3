"""What a model says of a selection, written beside the root: equal to a plain loop, once each, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.bigearthnet.inputs import BandStatistics
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.cli import app
from reben_cloud.errors import ConflictError, NotFiniteError
from reben_cloud.layers import write_layer
from reben_cloud.root.selection import Selection
from reben_cloud.schema import TensorSpec
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.torch import ModelInput, StreamLoader
from reben_cloud.training import parts
from reben_cloud.training.evaluate import evaluate_folder
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.outputs import embed
from tests.conftest import PATIENT_S, free_port

BANDS = ("B04", "B03", "B02", "VV")


@pytest.fixture(scope="module")
def root(shared, tmp_path_factory):
    """The URL of a root of the 24 real pairs."""
    folder = tmp_path_factory.mktemp("real") / "root"
    source, official = open_source(shared / "data" / "configilm_benv2_mock")
    build(make_plan(source, official, open_store(folder)))
    return str(folder)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The URL of 40 synthetic patches, maps included."""
    folder = tmp_path_factory.mktemp("synthetic") / "root"
    source, official = open_source("synthetic:40")
    build(make_plan(source, official, open_store(folder)))
    return str(folder)


def saved(folder, *, task="labels", **facts):
    torch.manual_seed(0)
    architecture = "resnet10t" if task == "map" else "test_byobnet"
    spec = ModelSpec(architecture=architecture, bands=BANDS, task=task, **facts)
    model = create_model(spec)
    save_model(folder, model, spec)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("segmenter"), task="map")


def by_loop(folder, selection, ask):
    """Patch id -> what a model says, by a plain loop over single patches."""
    model, spec = load_pretrained(folder)
    inputs = ModelInput(spec.bands)
    found = {}
    with torch.inference_mode():
        for batch in StreamLoader(selection, modalities=("s2", "s1"), batch_size=1):
            (patch_id,) = [selection.patch_ids[i] for i in batch["index"]]
            found[patch_id] = ask(model, inputs(batch))[0].numpy()
    return found


def files_of(folder):
    """Path -> bytes of all that is published; what a making leaves in its journal is not part of it."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("_build/")}


def test_probabilities_of_the_real_pairs_are_those_of_a_plain_loop(root, classifier, tmp_path):
    ds = rc.open(root)
    truth = by_loop(classifier, ds.search(), lambda model, image: model(image).sigmoid())

    report = rc.predict(classifier, ds.search(), tmp_path / "layer", batch_size=5)

    assert (report.num_patches, report.num_predicted, report.num_left, report.name) == (24, 24, 0, "pred")
    ds = rc.open(root, layers=[tmp_path / "layer"])
    sel = ds.search()
    found = np.array(sel.column("pred:probabilities").to_pylist())
    assert found == pytest.approx(np.array([truth[i] for i in sel.patch_ids]), abs=1e-6)
    name = REBEN.classes.names[3]
    assert sel.column(f"pred:{name}").to_pylist() == pytest.approx(
        [truth[i][3] for i in sel.patch_ids], abs=1e-6
    )
    likely = ds.search(cql2=f'"pred:{name}" > {np.median(found[:, 3])}')
    assert 0 < len(likely) < 24
    assert len(sel.suspects("pred:probabilities", limit=5)) == 5
    assert not (tmp_path / "layer" / "_build" / "layer" / "predict").exists()


def test_embeddings_are_searched_and_are_those_of_a_plain_loop(root, classifier, tmp_path):
    ds = rc.open(root)
    truth = by_loop(classifier, ds.search(), embed)

    rc.predict(classifier, ds.search(), tmp_path / "layer", what="embedding", batch_size=7)

    sel = rc.open(root, layers=[tmp_path / "layer"]).search()
    expected = np.array([truth[i] for i in sel.patch_ids])
    found = np.array(sel.column("emb:vector").to_pylist())
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)
    near = sel.nearest(sel.patch_ids[0], k=3)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert near.selection.patch_ids == [sel.patch_ids[i] for i in np.argsort(-(unit @ unit[0]))[1:4]]


def test_labels_are_cut_at_the_thresholds_of_the_model(root, tmp_path):
    cuts = tuple(0.45 + 0.01 * (n % 10) for n in range(19))
    folder = saved(tmp_path / "model", thresholds=cuts)
    ds = rc.open(root)
    truth = by_loop(folder, ds.search(), lambda model, image: model(image).sigmoid())

    rc.predict(folder, ds.search(), tmp_path / "labels.parquet", what="labels")

    table = pq.read_table(tmp_path / "labels.parquet").to_pandas().set_index("patch_id")
    assert sorted(table.index) == sorted(ds.search().patch_ids)
    expected = np.array([truth[i] for i in table.index]) > np.array(cuts, np.float32)
    assert 0 < expected.sum() < expected.size
    assert (table[list(REBEN.classes.names)].to_numpy() == expected).all()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "labels.parquet"}


def test_masks_are_a_map_a_mosaic_and_geotiffs(synthetic, segmenter, tmp_path):
    ds = rc.open(synthetic)
    sel = ds.search(limit=9)
    codes = np.array([codes[0] for codes in REBEN.classes.codes])
    truth = by_loop(segmenter, sel, lambda model, image: model(image).argmax(1))

    rc.predict(segmenter, sel, tmp_path / "layer", what="mask", batch_size=4, geotiffs=tmp_path / "tiffs")

    ds = rc.open(synthetic, layers=[tmp_path / "layer"])
    covered = ds.search(has="mask")
    assert sorted(covered.patch_ids) == sorted(sel.patch_ids)
    assert ds.layers["mask"].manifest.schema.map_array == "mask"
    for batch in StreamLoader(covered, modalities=("mask",), batch_size=9, shuffle=False):
        for number, mask in zip(batch["index"], batch["mask"].numpy(), strict=True):
            assert (mask == codes[truth[covered.patch_ids[number]]]).all()
    patch_id = covered.patch_ids[0]
    (path,) = (tmp_path / "tiffs").rglob(f"{patch_id}*.tif")
    with rasterio.open(path) as file:
        assert file.transform.a == 10
        assert (file.read(1) == codes[truth[patch_id]]).all()
        left, top = file.bounds.left, file.bounds.top
    # Beside it, what QGIS shows its codes with.
    entries = ElementTree.parse(path.with_suffix(".qml")).findall(
        "pipe/rasterrenderer/colorPalette/paletteEntry"
    )
    shown = {int(one.get("value")): (one.get("color"), one.get("label")) for one in entries}
    every = zip(REBEN.classes.names, REBEN.classes.colors, REBEN.classes.codes, strict=True)
    assert shown == {code: (color, name) for name, color, codes_ in every for code in codes_}
    assert set(codes[truth[patch_id]].ravel().tolist()) <= shown.keys()
    product = covered.column("reben:product")[0].as_py()
    raster = ds.mosaic(product, bands=["mask"])[0]
    cut = raster.sel(x=slice(left, left + 1200), y=slice(top, top - 1200))
    assert (cut.values == codes[truth[patch_id]]).all()


SCRIPT = """
import os, signal, sys
import reben_cloud as rc
from reben_cloud.training import parts
from reben_cloud.training.predict import predict

url, model, dest, last, what = sys.argv[1:]
parts.PART_PATCHES = 6
write = parts.Parts.write

def write_some(self, number, *arguments):
    if number == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, *arguments)

parts.Parts.write = write_some
predict(model, rc.open(url).search(), dest, what=what, batch_size=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "name"), [("probabilities", "layer"), ("embedding", "file.parquet"), ("mask", "layer")]
)
def test_killed_and_shared_out_it_ends_with_the_same_bytes(
    what, name, root, classifier, segmenter, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "PART_PATCHES", 6)
    sel, model = rc.open(root).search(), segmenter if what == "mask" else classifier
    whole, again = tmp_path / "whole", tmp_path / "again"
    rc.predict(model, sel, whole / name, what=what, batch_size=3)

    died = subprocess.run([sys.executable, "-c", SCRIPT, root, model, again / name, "2", what], check=False)
    assert died.returncode == -signal.SIGKILL
    share = rc.predict(model, sel, again / name, what=what, batch_size=3, share=(1, 2))
    # What the kill left is parts 0 and 1 (part 2 was being written); share 1 of 2 has 1 and 3.
    assert (share.num_predicted, share.num_left) == (6, 6)
    last = rc.predict(model, sel, again / name, what=what, batch_size=3)

    assert (last.num_predicted, last.num_left) == (6, 0)
    assert files_of(again) == files_of(whole)
    assert rc.predict(model, sel, again / name, what=what, batch_size=3).num_predicted == 0


@pytest.mark.slow
def test_two_processes_write_what_one_does(root, classifier, tmp_path):
    rc.predict(classifier, rc.open(root).search(), tmp_path / "one", batch_size=3)
    script = SCRIPT.replace("parts.PART_PATCHES = 6", "parts.PART_PATCHES = 1")
    (tmp_path / "run.py").write_text(script)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    command = [sys.executable, *launcher, tmp_path / "run.py", root, classifier, tmp_path / "two", "-1"]
    subprocess.run([*command, "probabilities"], check=True, env=threads, timeout=2 * PATIENT_S)

    one, two = (rc.open(root, layers=[tmp_path / name]).search() for name in ("one", "two"))
    first, second = (sel.column("pred:probabilities").to_pylist() for sel in (one, two))
    # Kernels may round otherwise in a process with other memory, by a few units in the last place.
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


def test_a_patch_that_comes_twice_is_predicted_once(root, classifier, tmp_path):
    sel = rc.open(root).search()
    twice = Selection(sel.dataset, sel.table, np.repeat(sel.rows[::-1], 2))

    report = rc.predict(classifier, twice, tmp_path / "file.parquet")

    assert report.num_patches == 24
    assert sorted(pq.read_table(tmp_path / "file.parquet")["patch_id"].to_pylist()) == sorted(sel.patch_ids)


def test_what_cannot_be_is_refused_before_the_work(root, classifier, segmenter, tmp_path):
    sel = rc.open(root).search()
    with pytest.raises(ValueError, match="classifies whole patches, so it has no mask to write"):
        rc.predict(classifier, sel, tmp_path / "x", what="mask")
    with pytest.raises(ValueError, match="classifies pixels, so it has no labels"):
        rc.predict(segmenter, sel, tmp_path / "x", what="labels")
    with pytest.raises(ValueError, match="masks are images, and become a layer"):
        rc.predict(segmenter, sel, tmp_path / "x.parquet", what="mask")
    with pytest.raises(ValueError, match="has 's2' already; give the layer another name"):
        rc.predict(classifier, sel, tmp_path / "x", name="s2")
    assert not list(tmp_path.iterdir())
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    with pytest.raises(ConflictError, match="is not empty: it holds file"):
        rc.predict(classifier, sel, tmp_path / "foreign")


def test_another_prediction_is_not_gone_on_with(root, classifier, tmp_path):
    sel = rc.open(root).search()
    rc.predict(classifier, sel, tmp_path / "layer")
    rc.predict(classifier, sel, tmp_path / "begun.parquet", share=(0, 2))

    with pytest.raises(ConflictError, match="is there already, with another num_patches"):
        rc.predict(classifier, rc.open(root).search(limit=3), tmp_path / "layer")
    with pytest.raises(ConflictError, match="another prediction was begun there, with another batch_size"):
        rc.predict(classifier, sel, tmp_path / "begun.parquet", batch_size=2)


@pytest.mark.parametrize(
    ("dest", "error", "message"),
    [
        pytest.param("layers/pred", ConflictError, "is inside the dataset .* a place of its own", id="layer"),
        pytest.param("pred.parquet", ConflictError, "is inside the dataset", id="file"),
    ],
)
def test_nothing_is_written_into_the_root(synthetic, tmp_path, dest, error, message):
    folder = saved(tmp_path / "model")
    with pytest.raises(error, match=message):
        rc.predict(folder, rc.open(synthetic).search(limit=2), f"{synthetic}/{dest}")


def test_a_finished_layer_of_another_name_and_a_file_of_another_kind_are_refused(root, classifier, tmp_path):
    sel = rc.open(root).search(limit=3)
    rc.predict(classifier, sel, tmp_path / "layer")

    with pytest.raises(ConflictError, match="is there already, as the layer pred"):
        rc.predict(classifier, sel, tmp_path / "layer", name="other")
    for name in ("a.csv", "a.PARQUET"):
        with pytest.raises(ValueError, match=r"a file of predictions is a \.parquet file"):
            rc.predict(classifier, sel, tmp_path / name)
    assert not (tmp_path / "a.csv").exists()


def test_options_that_contradict_are_refused(synthetic, tmp_path):
    folder = str(saved(tmp_path / "model"))
    (tmp_path / "file").write_text("mine")
    ask = partial(CliRunner().invoke, app)
    evaluating = ["evaluate", folder, "--root", synthetic]

    half = ask([*evaluating, "--choose-thresholds", "class", "--at-half"])
    shares = ask(["predict", folder, synthetic, str(tmp_path / "layer"), "--workers-total", "4"])
    bands = ask([*evaluating, "--bands", "VV,B04,B03,B02"])
    file = ask([*evaluating, "--report", str(tmp_path / "file")])

    assert (half.exit_code, shares.exit_code) == (2, 2)
    assert "--choose-thresholds measures nothing, so it takes no --at-half" in half.stderr
    assert "--workers-total without --worker-index" in shares.stderr
    assert not (tmp_path / "layer").exists()
    assert isinstance(bands.exception, ValueError)
    assert "takes the bands B04,B03,B02,VV in this order, not VV,B04,B03,B02" in str(bands.exception)
    assert isinstance(file.exception, ConflictError)
    assert "a report is a folder, and a file is there" in str(file.exception)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_folder(folder, rc.open(synthetic).search(limit=2), batch_size=0)


def test_a_prediction_with_other_pixels_or_statistics_is_another_one(synthetic, tmp_path):
    ds = rc.open(synthetic)
    tensor = TensorSpec(name="dem", shape=(12, 12), dtype="float32", fill=-1.0, pixel_m=100.0)
    first, other = (
        write_layer(
            tmp_path / f"dem{level}", ds, name="dem", tensors=tensor,
            patches=[(one, np.full((12, 12), level, np.float32)) for one in ds.selection.patch_ids],
        )
        for level in (3, 4)
    )  # fmt: skip
    bands, mean = ("B04", "dem"), {"dem": BandStatistics(mean=3.0, std=1.0)}
    spec = ModelSpec(architecture="test_byobnet", bands=bands, statistics=mean)
    model = create_model(spec)
    save_model(tmp_path / "model", model, spec)
    save_model(
        tmp_path / "shifted" / "model",
        model,
        replace(spec, statistics={"dem": BandStatistics(mean=4.0, std=1.0)}),
    )

    def ask(folder, layer, dest):
        return rc.predict(folder, ds.with_layers(layer).search(limit=4), dest)

    ask(tmp_path / "model", first, tmp_path / "file.parquet")
    assert ask(tmp_path / "model", first, tmp_path / "file.parquet").num_predicted == 0
    with pytest.raises(ConflictError, match="is there already, with another layers"):
        ask(tmp_path / "model", other, tmp_path / "file.parquet")
    with pytest.raises(ConflictError, match="is there already, with another statistics"):
        ask(tmp_path / "shifted" / "model", first, tmp_path / "file.parquet")


def test_an_output_that_is_not_finite_names_its_patch(root, tmp_path):
    folder = saved(tmp_path / "model")
    model = create_model(spec := ModelSpec(architecture="test_byobnet", bands=BANDS))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_model(folder, model, spec)
    sel = rc.open(root).search()

    with pytest.raises(NotFiniteError, match=r"the output for (S2\w+) is infinite, not a number"):
        rc.predict(folder, sel, tmp_path / "layer")


@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
def test_lightning_predicts_every_patch(synthetic):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        from reben_cloud.training.datamodule import RebenDataModule

    class Module(lightning.LightningModule):
        def predict_step(self, batch, _):
            return batch["index"].clone(), batch["s2_10m"].float().mean((1, 2, 3))

    data = RebenDataModule(synthetic, modalities=("s2",), batch_size=7)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip

    said = trainer.predict(Module(), data)

    ids = data.predict_ids()
    found = {ids[i]: float(v) for index, values in said for i, v in zip(index, values, strict=True)}
    assert len(found) == sum(len(index) for index, _ in said) == 40
    ds = rc.open(synthetic)
    for patch_id in ids[::13]:
        assert found[patch_id] == pytest.approx(float(ds.open_patch(patch_id)["s2_10m"].mean()), rel=1e-5)


def test_the_input_of_many_patches_is_made_in_inference_mode_too(synthetic):
    """Parts of a large batch are put together by other threads, which know nothing of the mode."""
    (batch,) = StreamLoader(rc.open(synthetic).search(), modalities=("s2", "s1"), batch_size=40)
    many = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}

    with torch.inference_mode():
        found = ModelInput(BANDS)(many)

    assert torch.equal(found[:40], found[40:])
    assert torch.equal(found, ModelInput(BANDS)(many))


def test_evaluate_says_what_it_measures_and_keeps_thresholds(synthetic, tmp_path):
    folder = str(saved(tmp_path / "model"))
    ask = partial(CliRunner().invoke, app)
    splits = {name: len(rc.open(synthetic).search(split=name)) for name in ("validation", "test")}

    first = ask(["evaluate", folder, "--root", synthetic, "--draws", "20"])
    every = ask(["evaluate", folder, "--root", synthetic, "--split", "any", "--json", "--draws", "20"])
    chosen = ask(["evaluate", folder, "--root", synthetic, "--choose-thresholds", "class"])
    after = ask(["evaluate", folder, "--root", synthetic, "--split", "validation", "--json", "--draws", "0"])
    half = ask(["evaluate", folder, "--root", synthetic, "--split", "validation", "--json", "--at-half"])

    assert [one.exit_code for one in (first, every, chosen, after, half)] == [0] * 5, first.output
    assert f"no --split: these are the {splits['test']} patches of the test split" in first.stderr
    assert "with snow, cloud or shadow too" in first.stderr
    found = json.loads(every.stdout)
    assert found["num_patches"] == 40
    low, high = found["intervals"]["micro"]["ap"]
    assert 0 <= low <= high <= 1
    assert f"these are the {splits['validation']} patches of the validation split" in chosen.stderr
    _, spec = load_pretrained(folder)
    assert len(set(spec.thresholds)) > 2
    mine, other = json.loads(after.stdout), json.loads(half.stdout)
    assert mine["thresholds"] == list(spec.thresholds)
    assert "intervals" not in mine
    assert other["thresholds"] == [0.5] * 19
    assert mine["macro"]["ap"] == other["macro"]["ap"]
    assert mine["macro"]["f1"] > other["macro"]["f1"]


@pytest.mark.slow
def test_the_command_predicts(root, classifier, tmp_path):
    command = [sys.executable, "-m", "reben_cloud.cli", "predict", classifier, root, tmp_path / "layer"]
    options = ["--what", "embedding", "--name", "mine", "--split", "train", "--batch-size", "4"]

    first = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    second = subprocess.run([*command, *options], check=True, capture_output=True, text=True)

    ds = rc.open(root, layers=[tmp_path / "layer"])
    count = len(ds.search(split="train"))
    assert len(ds.search(has="mine")) == count
    assert f"embedding of {count} patches in the layer mine" in first.stdout
    assert "nothing was left to predict" in second.stdout
