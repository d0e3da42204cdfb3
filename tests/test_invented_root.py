"""A root of an invented dataset: built, streamed, searched, exported, verified and served by the same public code.

Nothing in it is BigEarthNet's: other modalities, shapes and dtypes, patches of 600 m, seven classes, ids of another
grammar, metadata of its own. Pixels are computed from (patch, tensor, place), so that any mix-up shows.
"""

from __future__ import annotations

import json
import math
import tarfile
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import safetensors.numpy
import xarray as xr
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.build import build, make_plan, open_plan
from reben_cloud.checks.verify import verify
from reben_cloud.cli import app
from reben_cloud.root import layout
from reben_cloud.root.metadata import patch_infos
from reben_cloud.root.patch import Patch
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.schema import DTYPES, RESERVED, ArraySpec, Classes, Modality, Schema, TensorSpec
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.stac import stac_errors

NUM_PATCHES = 41
NAMES = ("Reef", "Sand", "Seagrass", "Rubble", "Rock", "Mud", "Open water")
FIRST_CODE = 70_000


def image(name, dtype, size, **facts):
    return TensorSpec(name=name, shape=(size, size), dtype=dtype, pixel_m=600 / size, **facts)


TONES = Modality(
    name="tones",
    title="Aerial pictures",
    tensors=tuple(image(name, "uint8", 30, units="0.004") for name in ("near", "far", "deep")),
    arrays=(
        ArraySpec(
            name="tones",
            tensors=("far", "near", "deep"),
            stacked=True,
            dims=("tone", "y", "x"),
            zarr_name="tones",
        ),
    ),
)
DEPTH = Modality(
    name="depth",
    tensors=(image("depth", "float32", 10, units="m", fill=float("nan")),),
    key_column="dive",
    key_suffix=".depth",
)
CUBE = Modality(
    name="cube", tensors=(TensorSpec(name="cube", shape=(3, 7, 5, 5), dtype="int8"),), key_suffix=".cube"
)
WORDS = Modality(
    name="words", tensors=(TensorSpec(name="vector", shape=(6,), dtype="float16"),), key_suffix=".words"
)
BED = Modality(name="bed", tensors=(image("class", "int32", 30),), key_suffix=".bed")
ODD = Modality(
    name="odd",
    key_suffix=".odd",
    tensors=(
        TensorSpec(name="alive", shape=(3,), dtype="bool"),
        TensorSpec(name="brain", shape=(2, 5), dtype="bfloat16"),
        TensorSpec(name="small", shape=(4,), dtype="float8_e5m2"),
        TensorSpec(name="count", shape=(), dtype="int64"),
    ),
)
REEFS = Schema(
    name="Reefs 1",
    modalities=(TONES, DEPTH, CUBE, WORDS, BED, ODD),
    classes=Classes(names=NAMES, codes=tuple((FIRST_CODE + n,) for n in range(7))),
    patch_m=600,
    map_array="bed",
    recommended_without=("murky",),
    description="Invented reefs.",
    license="CC0-1.0",
)


def metadata_of(count=NUM_PATCHES):
    """What is known of the patches: two surveys, two zones, a row of squares each."""
    number = np.arange(count)
    survey = number % 2
    return pa.table(
        {
            "patch_id": [
                f"reef-{n:03d}/{'ab'[s]}".replace("/", "~") for n, s in zip(number, survey, strict=True)
            ],
            "labels": [sorted({NAMES[n % 7], NAMES[n % 3]}) for n in number.tolist()],
            "split": [("train", "train", "validation", "test")[n % 4] for n in number.tolist()],
            "product": [f"survey_{s}" for s in survey.tolist()],
            "datetime": pa.array((1_700_000_000 + 3600 * number) * 1_000_000, pa.timestamp("us", "UTC")),
            "epsg": np.where(survey, 32755, 32633),
            "x0": 500_000 + 600 * number,
            "y0": np.where(survey, 8_000_000, 4_000_000),
            "dive": [f"dive {n}" for n in number.tolist()],
            "visibility_m": number / 4,
            "murky": number % 5 == 4,
        }
    )


def tensor_of(patch_id, labels, spec):
    """One tensor of a patch, from its id and name alone; the map from its labels."""
    if spec.name == "class":
        codes = np.array([FIRST_CODE + NAMES.index(label) for label in labels], np.int32)
        return np.resize(codes, spec.shape)
    seed = zlib.crc32(f"{patch_id} {spec.name}".encode())
    values = (seed + np.arange(math.prod(spec.shape)) * 7) % 97
    if spec.dtype == "bool":
        values %= 2
    return values.astype(spec.storage).reshape(spec.shape)


def tensors_of(patch_id, labels, modality):
    return {spec.name: tensor_of(patch_id, labels, spec) for spec in modality.tensors}


@dataclass(frozen=True, slots=True)
class Surveys:
    """A source such as somebody else would write: it satisfies the protocol and inherits nothing."""

    schema: Schema = REEFS
    kind: str = "surveys"
    is_remote: bool = False
    left_out = {}  # noqa: RUF012

    def describe(self):
        return "invented surveys"

    def described(self, metadata):
        return metadata

    def names(self):
        return dict.fromkeys(self.schema.modality_names)

    def identity(self):
        return {}

    def stamp(self, info, modalities):
        return ""

    def read(self, info, modalities):
        return Patch(
            info=info,
            payloads={
                m.name: m.encode(tensors_of(info.patch_id, info.labels, m))
                for m in map(self.schema.modality, modalities)
            },
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reefs") / "root"
    build(make_plan(Surveys(), metadata_of(), open_store(folder), options=PlacementOptions(shard_samples=8)))
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return rc.open(root)


LABELS = dict(zip(metadata_of()["patch_id"].to_pylist(), metadata_of()["labels"].to_pylist(), strict=True))


def test_it_is_opened_with_the_schema_that_it_was_built_with(dataset):
    assert dataset.schema == REEFS
    assert dataset.modalities == REEFS.modality_names
    assert len(dataset) == NUM_PATCHES
    assert sorted(dataset.search().patch_ids) == sorted(LABELS)


@pytest.mark.parametrize("deep", [False, True])
def test_it_verifies(dataset, deep):
    assert verify(dataset, deep=deep).problems == ()


# -- independent readers -----------------------------------------------------------------------------


def payload_by_safetensors(patch_id, modality):
    """What the library itself makes of a patch's tensors; PyTorch has the dtypes that NumPy lacks."""
    tensors = tensors_of(patch_id, LABELS[patch_id], modality)
    foreign = {spec.name: spec.dtype for spec in modality.tensors if spec.storage.name != spec.dtype}
    if not foreign:
        return safetensors.numpy.save(tensors)
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    found = {name: torch.from_numpy(values.reshape(-1)) for name, values in tensors.items()}
    for name, dtype in foreign.items():
        found[name] = found[name].view(getattr(torch, dtype))
    return safetensors_torch.save({name: found[name].reshape(tensors[name].shape) for name in found})


@pytest.mark.parametrize("modality", REEFS.modalities, ids=lambda m: m.name)
def test_shards_are_tars_of_what_safetensors_writes(root, modality):
    found = []
    for file in sorted((root / "shards").glob(f"*/{modality.name}/*.tar")):
        with tarfile.open(file) as tar:
            names = tar.getnames()
            for name, text in zip(names[::2], names[1::2], strict=True):
                patch_id, rest = name.split(".", 1)
                assert rest == f"{modality.name}.safetensors"
                assert tar.extractfile(name).read() == payload_by_safetensors(patch_id, modality)
                assert json.loads(tar.extractfile(text).read())["labels"] == LABELS[patch_id]
                found.append(patch_id)

    assert sorted(found) == sorted(LABELS)


def test_webdataset_reads_a_shard(root):
    import webdataset

    samples = list(
        webdataset.WebDataset(str(root / "shards/train/cube/train-cube-000000.tar"), shardshuffle=False)
    )

    for sample in samples:
        loaded = safetensors.numpy.load(sample["cube.safetensors"])["cube"]
        (spec,) = CUBE.tensors
        assert (loaded == tensor_of(sample["__key__"], (), spec)).all()
    assert len(samples) == 8


def expected(patch_id, modality, array):
    tensors = tensors_of(patch_id, LABELS[patch_id], modality)
    return np.stack([tensors[name] for name in array.tensors]) if array.stacked else tensors[array.tensors[0]]


ARRAYS = [
    pytest.param(modality, array, id=array.name) for modality in REEFS.modalities for array in modality.arrays
]


@pytest.mark.parametrize(("modality", "array"), ARRAYS)
def test_zarr_python_reads_every_array(root, modality, array):
    for product in ("survey_0", "survey_1"):
        group = zarr.open_group(root / "zarr" / f"{product}.zarr", mode="r")
        ids = group["patch_id"][:].tolist()
        values = group[array.zarr_name]

        assert values.metadata.dimension_names == ("patch", *array.dims)
        for patch_id, pixels in zip(ids, values[:], strict=True):
            np.testing.assert_array_equal(pixels, expected(patch_id, modality, array))
        assert ids == sorted(name for name in LABELS if name.endswith("ab"[int(product[-1])]))


def test_xarray_opens_a_product_and_a_patch(dataset):
    pytest.importorskip("rioxarray")
    stack = dataset.open_zarr("survey_1")
    patch = dataset.open_patch("reef-007~b")

    assert isinstance(stack, xr.Dataset)
    assert stack.sizes["patch"] == NUM_PATCHES // 2
    assert stack.attrs["proj:code"] == "EPSG:32755"
    assert stack.tone.values.tolist() == ["far", "near", "deep"]
    assert patch.rio.crs.to_epsg() == 32755
    np.testing.assert_array_equal(patch.tones, expected("reef-007~b", TONES, TONES.arrays[0]))
    assert patch.x.values[[0, -1]].tolist() == [504_210, 504_790]
    assert dataset.mosaic("survey_0", bands=["near"], bbox=None).shape == (1, 30, 1230)


def test_patches_are_stacked_in_xarray(dataset):
    found = dataset.search(ids=["reef-001~b", "reef-002~a"]).to_xarray(bands=["deep", "depth"])

    assert {*found.data_vars} >= {"tones", "depth"}
    assert found.crs.values.tolist() in (["EPSG:32755", "EPSG:32633"], ["EPSG:32633", "EPSG:32755"])


# -- search ------------------------------------------------------------------------------------------


def where(condition):
    rows = metadata_of().to_pylist()
    return sorted(row["patch_id"] for row in rows if condition(row))


@pytest.mark.parametrize(
    ("arguments", "condition"),
    [
        pytest.param({"labels": "Seagrass"}, lambda r: "Seagrass" in r["labels"], id="labels"),
        pytest.param(
            {"labels_all": ["Reef", "Rock"]}, lambda r: {"Reef", "Rock"} <= {*r["labels"]}, id="labels_all"
        ),
        pytest.param({"split": "test"}, lambda r: r["split"] == "test", id="split"),
        pytest.param({"product": "survey_1"}, lambda r: r["product"] == "survey_1", id="product"),
        pytest.param({"recommended": True}, lambda r: not r["murky"], id="recommended"),
        pytest.param({"recommended": False}, lambda r: r["murky"], id="not recommended"),
        pytest.param({"bbox": (140, -20, 160, -10)}, lambda r: r["epsg"] == 32755, id="bbox"),
        pytest.param({"ids": "reef-003~b"}, lambda r: r["dive"] == "dive 3", id="ids"),
        pytest.param(
            {"cql2": "visibility_m < 2"}, lambda r: r["visibility_m"] < 2, id="cql2 of its own column"
        ),
        pytest.param({"cql2": "murky = true"}, lambda r: r["murky"], id="cql2 of a flag"),
        pytest.param({"season": "fall"}, lambda r: r["datetime"].month in (9, 10, 11), id="season"),
    ],
)
def test_a_search_finds_what_the_metadata_say(dataset, arguments, condition):
    assert sorted(dataset.search(**arguments).patch_ids) == where(condition)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"labels": "Urban fabric"}, "unknown labels 'Urban fabric'; known are Reef", id="class"),
        pytest.param({"country": "Finland"}, "say nothing of country", id="country"),
        pytest.param({"snow": False}, "say nothing of contains_seasonal_snow", id="snow"),
        pytest.param({"s1_datetime": "2017"}, "say nothing of s1_datetime", id="s1_datetime"),
    ],
)
def test_what_only_bigearthnet_has_is_refused_with_a_reason(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        dataset.search(**arguments)


def test_a_selection_as_tables_and_items(dataset, shared):
    pystac = pytest.importorskip("pystac")
    selection = dataset.search(split="train")
    frame = selection.to_pandas().set_index("patch_id")
    metadata = metadata_of().to_pandas().set_index("patch_id").loc[frame.index]

    for name in ("dive", "visibility_m", "murky", "product", "datetime"):
        assert frame[name].tolist() == metadata[name].tolist()
    assert selection.official().sort_by("patch_id").to_pylist() == [
        row | {"x0": float(row["x0"]), "y0": float(row["y0"])}
        for row in metadata_of().to_pylist()
        if row["split"] == "train"
    ]
    for item in selection.items():
        assert isinstance(item, pystac.Item)
        assert stac_errors(item.to_dict(), shared / "stac_schemas") == []
    assert selection.statistics["labels"]["Reef"] > 0
    assert "countries" not in selection.statistics
    assert len(selection.to_geopandas()) == len(selection)
    assert selection._repr_html_()


def test_the_catalog_is_valid_and_complete(root, shared):
    pystac = pytest.importorskip("pystac")
    documents = [json.loads(file.read_text()) for file in root.rglob("*.json") if "_build" not in file.parts]
    stac = [d for d in documents if d.get("type") in ("Catalog", "Collection", "Feature")]

    assert len(stac) == 1 + 2 + 2 + 6 * 6
    for document in stac:
        assert stac_errors(document, shared / "stac_schemas") == []
        assert "earthnet" not in json.dumps(document).lower()
    catalog = pystac.Catalog.from_file(str(root / "catalog.json"))
    assert [c.id for c in catalog.get_children()] == ["reefs-1-patches", "reefs-1-patches-shards"]
    for item in catalog.get_items(recursive=True):
        for asset in item.get_assets().values():
            assert (root / asset.get_absolute_href().removeprefix(f"{root}/")).exists()


# -- streams -----------------------------------------------------------------------------------------


def check_batch(selection, batch, modalities=REEFS.modalities):
    ids = selection.patch_ids
    for position, index in enumerate(np.asarray(batch["index"]).tolist()):
        if index < 0:
            continue
        for modality in modalities:
            for array in modality.arrays:
                got = batch[array.name][position]
                want = expected(ids[index], modality, array)
                np.testing.assert_array_equal(got, want, err_msg=f"{array.name} of {ids[index]}")
        labels = [NAMES[n] for n in np.flatnonzero(batch["labels"][position])]
        assert sorted(labels) == LABELS[ids[index]]


@pytest.mark.parametrize("form", ["shards", "zarr"])
def test_raw_batches_are_shuffled_complete_and_resumed(dataset, form):
    selection = dataset.search()

    def loader():
        return RawLoader(selection, batch_size=6, seed=3, form=form)

    order = []
    for batch in loader():
        check_batch(selection, batch)
        order += batch["index"][batch["valid"]].tolist()
    assert sorted(order) == list(range(NUM_PATCHES))
    assert order != sorted(order)

    first, rest = loader(), loader()
    batches = iter(first)
    seen = [next(batches)["index"].copy() for _ in range(3)]
    rest.load_state_dict(first.state_dict())
    seen += [batch["index"][batch["valid"]].copy() for batch in rest]
    assert np.concatenate(seen).tolist() == order


def test_a_part_of_the_modalities_is_streamed(dataset):
    selection = dataset.search(recommended=True)
    for batch in RawLoader(selection, modalities=["odd", "depth"], batch_size=5):
        assert {*batch} == {
            "depth",
            "odd_alive",
            "odd_brain",
            "odd_small",
            "odd_count",
            "labels",
            "index",
            "valid",
        }
        check_batch(selection, batch, [DEPTH, ODD])


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torch_loaders_deliver_the_same(dataset, num_workers):
    torch = pytest.importorskip("torch")
    from reben_cloud.torch import StreamDataset, StreamLoader

    selection = dataset.search(split=["train", "validation"])
    options = {"modalities": ["cube", "bed", "odd"], "seed": 5}
    stream = StreamDataset(selection, batch_size=4, **options)
    loader = torch.utils.data.DataLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
    )
    found = []
    for batch in loader if num_workers else StreamLoader(selection, batch_size=4, **options):
        assert batch["cube"].dtype == torch.int8
        assert batch["cube"].shape[1:] == (3, 7, 5, 5)
        check_batch(selection, {name: values.numpy() for name, values in batch.items()}, [CUBE, BED, ODD])
        found += batch["index"][batch["valid"]].tolist()
    assert sorted(found) == list(range(len(selection)))


# -- exports, and roots made of them -----------------------------------------------------------------


def test_py_lmdb_reads_an_export(dataset, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    dataset.search().export_lmdb(tmp_path / "export")
    rows = {row["patch_id"]: row for row in metadata_of().to_pylist()}

    with (
        lmdb.open(str(tmp_path / "export"), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        records = dict(transaction.cursor())

    assert len(records) == NUM_PATCHES * len(REEFS.modalities)
    for patch_id, row in rows.items():
        for modality in REEFS.modalities:
            key = f"{row[modality.key_column]}{modality.key_suffix}"
            assert bytes(records[key.encode()]) == payload_by_safetensors(patch_id, modality)


def test_an_lmdb_export_is_opened_searched_streamed_and_verified_like_the_root(dataset, tmp_path):
    dataset.search(split="train").export_lmdb(tmp_path / "export", modalities=["depth", "cube"])
    exported = rc.open(tmp_path / "export")

    assert exported.schema == REEFS.only(["depth", "cube"])
    assert verify(exported).problems == ()
    selection = exported.search(labels="Reef")
    assert selection.patch_ids == dataset.search(split="train", labels="Reef").patch_ids
    for batch in RawLoader(selection, batch_size=3):
        check_batch(selection, batch, [DEPTH, CUBE])
    for ours, theirs in zip(
        RawLoader(exported.search(), batch_size=4),
        RawLoader(dataset.search(split="train"), modalities=["depth", "cube"], batch_size=4),
        strict=True,
    ):
        assert ours["index"].tolist() == theirs["index"].tolist()


def test_safetensors_reads_an_export(dataset, tmp_path):
    selection = dataset.search(product="survey_1")
    selection.export_safetensors(tmp_path / "export", patches_per_file=9)

    ids = selection.patch_ids
    for number in range(-(-len(ids) // 9)):
        file = tmp_path / "export" / f"part-{number:05d}.safetensors"
        with safetensors.safe_open(file, "numpy") as part:
            for modality in (TONES, DEPTH, CUBE, WORDS, BED):
                for array in modality.arrays:
                    want = [expected(i, modality, array) for i in ids[9 * number : 9 * number + 9]]
                    np.testing.assert_array_equal(part.get_tensor(array.name), np.stack(want))


def built_again(source, root, **options):
    plan, _ = open_plan(source, root, **options)
    build(plan)
    return rc.open(root)


@pytest.mark.parametrize("kind", ["root", "lmdb", "safetensors"])
def test_a_root_made_of_a_root_or_an_export_has_the_same_bytes(root, dataset, tmp_path, kind):
    source = root
    if kind != "root":
        source = tmp_path / "export"
        getattr(dataset.search(), f"export_{kind}")(source)

    again = built_again(source, tmp_path / "again", options=PlacementOptions(shard_samples=8))

    assert again.manifest["fingerprint"] == dataset.manifest["fingerprint"]
    assert again.schema == REEFS
    assert verify(again, deep=True).problems == ()
    for file in root.rglob("*"):
        path = file.relative_to(root)
        if file.is_file() and path.parts[0] in ("shards", "zarr", "patches.parquet", "catalog.json"):
            assert file.read_bytes() == (tmp_path / "again" / path).read_bytes(), path


def test_a_part_of_a_root_is_built_and_compared_with_its_source(dataset, root, tmp_path):
    part = built_again(
        root, tmp_path / "part", only=dataset.search(split="train"), modalities=["odd", "depth"]
    )

    assert part.schema == REEFS.only(["depth", "odd"])
    assert sorted(part.search().patch_ids) == where(lambda row: row["split"] == "train")
    assert verify(part, against=Surveys()).problems == ()


def test_a_changed_pixel_of_an_export_is_not_built_of(dataset, tmp_path):
    dataset.search().export_safetensors(tmp_path / "export")
    part = tmp_path / "export" / "part-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)

    with pytest.raises(rc.ChecksumError, match="is not what was exported; export again"):
        built_again(tmp_path / "export", tmp_path / "again")


# -- server and command line -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(dataset):
    pytest.importorskip("stac_fastapi.api")
    from fastapi.testclient import TestClient

    from reben_cloud.serve import create_app

    with TestClient(create_app(dataset)) as client:
        yield client


def test_the_server_answers_searches(client, dataset, shared):
    url = "/collections/reefs-1-patches"
    collection = client.get(url).json()
    found = client.post(
        "/search", json={"filter": {"op": "=", "args": [{"property": "dive"}, "dive 8"]}}
    ).json()
    names = client.get("/queryables").json()["properties"]

    assert collection["title"] == "Reefs 1"
    assert stac_errors(collection, shared / "stac_schemas") == []
    assert client.get("/collections/bigearthnet-v2").status_code == 404
    assert [item["id"] for item in found["features"]] == ["reef-008~a"]
    for item in client.get(f"{url}/items", params={"limit": 50}).json()["features"]:
        assert stac_errors(item, shared / "stac_schemas") == []
    assert names[layout.column("visibility_m")] == {"title": "Visibility m", "type": "number"}
    assert names[layout.column("murky")]["type"] == "boolean"
    assert not {name for name in names if name not in {"collection", *dataset.patch_table.names}}


def test_the_page_gets_footprints_and_patches(client, dataset):
    index = client.get("/explore/index.json").json()
    data = client.get("/explore/footprints.bin").content
    ids = dataset.search().patch_ids

    assert len(data) == NUM_PATCHES * (4 * 4 + 4 + 2 + 3)
    assert [(p["name"], p["square"], p["size"]) for p in index["products"]] == [
        ("survey_0", "survey_0", [41, 1]),
        ("survey_1", "survey_1", [39, 1]),
    ]
    assert [flag["title"] for flag in index["flags"]] == ["Murky"]
    for row in (0, NUM_PATCHES - 1):
        patch = client.get(f"/explore/rows/{row}").json()
        assert patch["id"] == ids[row]
        assert {entry["name"] for entry in patch["legend"]} == {*LABELS[ids[row]]}
        picture = client.get(f"/explore/patches/{ids[row]}/{patch['pictures'][0]['name']}.png")
        assert picture.content.startswith(b"\x89PNG")
    assert client.get(f"/explore/rows/{NUM_PATCHES}").status_code == 404


def run_command(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.mark.slow
def test_the_commands_take_it(root, tmp_path):
    assert json.loads(run_command("info", root, "--json"))["modalities"] == list(REEFS.modality_names)
    assert "tones, depth, cube, words, bed, odd" in run_command("info", root)
    assert run_command("search", root, "--label", "Reef", "--recommended", "--format", "ids").split() == [
        patch_id
        for patch_id in run_command("search", root, "--format", "ids").split()
        if patch_id in where(lambda row: "Reef" in row["labels"] and not row["murky"])
    ]
    assert "2023-11-14T22:13:20Z" in run_command("search", root, "--limit", "50")
    for form in ("geojson", "stac"):
        assert len(json.loads(run_command("search", root, "--format", form))["features"]) == NUM_PATCHES
    streamed = json.loads(run_command("stream", root, "--modality", "cube", "--batch-size", "8", "--json"))
    assert streamed["samples"] == NUM_PATCHES
    for form in ("lmdb", "safetensors"):
        run_command("export", root, tmp_path / form, "--format", form, "--split", "train")
        done = run_command("build", tmp_path / form, tmp_path / f"root-{form}", "--modality", "cube")
        assert "cube 21" in done
    assert json.loads(run_command("verify", root, "--deep", "--json"))["ok"]
    assert json.loads(run_command("verify", tmp_path / "lmdb", "--json"))["ok"]
    run_command("doctor", root)


# -- what is refused, and any small schema -----------------------------------------------------------


def changed(name, values):
    table = metadata_of()
    at = table.schema.get_field_index(name)
    return table.append_column(name, values) if at < 0 else table.set_column(at, name, values)


def with_first(name, value):
    column = metadata_of().column(name)
    return changed(name, pa.array([value, *column.to_pylist()[1:]], column.type))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(with_first("patch_id", "reef.000"), r"'reef\.000' is not a valid patch_id", id="dot"),
        pytest.param(with_first("patch_id", "réef"), "'réef' is not a valid patch_id", id="not ASCII"),
        pytest.param(with_first("patch_id", "r" * 90), "of 90 characters is too long", id="long"),
        pytest.param(with_first("product", "a/b"), "'a/b' is not a valid product", id="product"),
        pytest.param(
            with_first("epsg", 32634), "product survey_0 has patches in several projections", id="epsg"
        ),
        pytest.param(with_first("dive", None), "column dive of the metadata has 1 nulls", id="no key"),
        pytest.param(
            with_first("labels", ["Pastures"]), "unknown label 'Pastures'; known are Reef", id="class"
        ),
        pytest.param(metadata_of().drop_columns(["murky"]), "the metadata lack murky", id="no flag"),
        pytest.param(metadata_of().drop_columns(["x0"]), "the metadata lack x0", id="no place"),
        pytest.param(changed("shard", pa.nulls(NUM_PATCHES)), "a root has a column 'shard'", id="reserved"),
        pytest.param(changed("bbox", pa.nulls(NUM_PATCHES)), "a root has a column 'bbox'", id="bbox"),
        pytest.param(
            changed("bed_offset", pa.nulls(NUM_PATCHES)), "a root has a column 'bed_offset'", id="place"
        ),
        pytest.param(changed("a.b", pa.nulls(NUM_PATCHES)), "'a.b' is not a valid name", id="column"),
        pytest.param(
            changed("age", pa.array(range(NUM_PATCHES), pa.duration("s"))),
            r"column age of the metadata is duration\[s\]",
            id="type",
        ),
    ],
)
def test_metadata_that_no_root_can_hold_are_refused(table, message, tmp_path):
    with pytest.raises(rc.SourceError, match=message):
        make_plan(Surveys(), table, open_store(tmp_path))


def test_schemas_whose_modalities_would_meet_are_refused():
    two = replace(CUBE, name="two", arrays=(), key_suffix=CUBE.key_suffix)
    with pytest.raises(
        ValueError, match=r"the keys in an LMDB of a schema need different names, got patch_id"
    ):
        replace(REEFS, modalities=(CUBE, two), map_array=None)
    others = (replace(TONES.arrays[0], name="others", zarr_name="others"),)
    mixed = replace(
        TONES, name="mixed", arrays=(replace(others[0], tensors=("near", "far", "deep")),), key_suffix="x"
    )
    with pytest.raises(ValueError, match="axis tone is far, near, deep, and near, far, deep in array others"):
        replace(REEFS, modalities=(TONES, mixed), map_array=None)
    assert Modality(name="plain", tensors=CUBE.tensors).key_suffix == ".plain"


class Mixed(Surveys):
    """Gives the pixels of one patch for all of them."""

    def read(self, info, modalities):
        first = next(patch_infos(metadata_of()))
        return replace(Surveys.read(self, first, modalities), info=info)


class Mistaken(Surveys):
    """Says that they are that patch, too."""

    def read(self, info, modalities):
        return Surveys.read(self, next(patch_infos(metadata_of())), modalities)


def test_a_source_that_mixes_patches_up_stops_the_build(tmp_path):
    for source, message in (
        (Mixed(), "the reference map holds Reef, the metadata says"),
        (Mistaken(), "another patch"),
    ):
        with pytest.raises(rc.SourceError, match=message):
            build(make_plan(source, metadata_of(), open_store(tmp_path / type(source).__name__)))


def test_columns_of_other_types_come_out_as_they_went_in(tmp_path):
    count = 6
    odd = {
        "seen_on": pa.array(np.arange(count, dtype=np.int32), pa.date32()),
        "seen_at": pa.array(np.arange(count), pa.timestamp("s")),
        "level": pa.array(np.arange(count), pa.uint16()),
        "score": pa.array([math.nan, *range(count - 1)], pa.float32()),
        "kind": pa.array(list("abcabc")).dictionary_encode(),
        "tags": pa.array([["x"] * n for n in range(count)]),
        "note": pa.array([None, *"abcde"]),
    }
    table = metadata_of(count)
    for name, values in odd.items():
        table = table.append_column(name, values)
    build(make_plan(Surveys(), table, open_store(tmp_path / "root")))

    dataset = rc.open(tmp_path / "root")
    official = dataset.search().official()
    for name in odd:
        assert str(official.column(name).to_pylist()) == str(table.column(name).to_pylist())
    assert verify(dataset, deep=True).problems == ()
    assert json.loads(json.dumps([i.to_dict() for i in dataset.search().items()], allow_nan=False))
    again = built_again(tmp_path / "root", tmp_path / "again")
    assert again.manifest["fingerprint"] == dataset.manifest["fingerprint"]


names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name not in RESERVED)
shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@st.composite
def schemas(draw):
    modalities = []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        kinds = draw(st.lists(st.tuples(shapes, st.sampled_from(sorted(DTYPES))), min_size=1, max_size=3))
        tensors = [
            TensorSpec(name=f"T{number}", shape=shape, dtype=dtype)
            for number, (shape, dtype) in enumerate(kinds)
        ]
        modalities.append(Modality(name=name, tensors=tuple(tensors)))
    classes = Classes(names=tuple(f"class {n}" for n in range(draw(st.integers(1, 300)))))
    try:
        return Schema(
            name="Any", modalities=tuple(modalities), classes=classes, patch_m=draw(st.integers(1, 5000))
        )
    except ValueError as error:  # two arrays may come to one name, such as a_t0 of a, and of a modality a_t0
        assume("different names" not in str(error))
        raise


@dataclass(frozen=True, slots=True)
class Noise(Surveys):
    """Random bits in every tensor, NaN and infinities among them, keyed by the patch."""

    def read(self, info, modalities):
        payloads = {}
        for modality in map(self.schema.modality, modalities):
            bits = np.random.default_rng(zlib.crc32(f"{info.patch_id} {modality.name}".encode()))
            tensors = {
                spec.name: np.frombuffer(
                    bits.bytes(spec.nbytes)
                    if spec.dtype != "bool"
                    else bytes(bits.integers(0, 2, spec.nbytes, np.uint8)),
                    spec.storage,
                ).reshape(spec.shape)
                for spec in modality.tensors
            }
            payloads[modality.name] = modality.encode(tensors)
        return Patch(info=info, payloads=payloads)


@pytest.mark.slow
@given(schema=schemas(), count=st.integers(1, 9), shard_samples=st.integers(1, 5))
@settings(max_examples=12)
def test_any_small_schema_is_built_streamed_and_verified(schema, count, shard_samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any") / "root"
    classes = schema.classes.names
    table = metadata_of(count)
    labels = [sorted({classes[n % len(classes)], classes[-1 - n % len(classes)]}) for n in range(count)]
    table = table.set_column(1, "labels", pa.array(labels))
    source = Noise(schema=schema)

    build(make_plan(source, table, open_store(folder), options=PlacementOptions(shard_samples=shard_samples)))

    dataset = rc.open(folder)
    assert dataset.schema == Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert verify(dataset, deep=True).problems == ()
    selection = dataset.search()
    infos = {info.patch_id: info for info in patch_infos(table)}
    for form in ("shards", "zarr"):
        seen = []
        for batch in RawLoader(selection, batch_size=4, form=form):
            for position in np.flatnonzero(batch["valid"]).tolist():
                patch_id = selection.patch_ids[batch["index"][position]]
                seen.append(patch_id)
                payloads = source.read(infos[patch_id], schema.modality_names).payloads
                for modality in schema.modalities:
                    arrays = {array.name: batch[array.name][position] for array in modality.arrays}
                    assert modality.unstack(arrays) == payloads[modality.name]
                found = [classes[n] for n in np.flatnonzero(batch["labels"][position])]
                assert sorted(found) == sorted(infos[patch_id].labels)
        assert sorted(seen) == sorted(infos)
        for batch in RawLoader(selection, batch_size=4, form=form, layout="records"):
            for position in np.flatnonzero(batch["valid"]).tolist():
                info = infos[selection.patch_ids[batch["index"][position]]]
                payloads = source.read(info, schema.modality_names).payloads
                assert {name: bytes(batch[name][position]) for name in payloads} == payloads
