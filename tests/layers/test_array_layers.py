"""Array layers: written beside a root, read as modalities more, on folders and a real S3 server."""

from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load as load_safetensors

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify_layer
from reben_cloud.errors import ChecksumError, ConflictError, InvalidPatchError, NotFoundError, SourceError
from reben_cloud.layers import rebase_layer
from reben_cloud.schema import TensorSpec
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.batches import assert_same, samples
from tests.layers.data import ELEVATION, EMBEDDING, NUM_PATCHES, elevation_of, elevations, embedding_of
from tests.roots import synthetic_root


def test_a_layer_is_a_modality_more(attached, covered):
    assert attached.modalities == ("s2", "s1", "map", "elevation")
    assert list(attached.layers) == ["elevation"]
    assert attached.layers["elevation"].manifest.coverage == len(covered)
    assert f"elevation: {len(covered)} of 60 patches, Elevation" in attached.summary()


def test_every_batch_has_what_the_layer_has_for_its_patches(attached, ds, covered):
    found = samples(attached.search())

    without = samples(ds.search())
    assert_same(without, {i: {n: found[i][n] for n in without[i]} for i in found})
    for patch_id, arrays in found.items():
        is_there = patch_id in covered
        expected = elevation_of(patch_id) if is_there else np.full((120, 120), -9999)
        assert arrays["elevation_present"] == is_there
        np.testing.assert_array_equal(arrays["elevation"], expected)


def test_the_order_of_an_epoch_is_that_of_the_root(attached, ds):
    def order(dataset):
        return np.concatenate([b["index"].copy() for b in RawLoader(dataset.search(), batch_size=8, seed=3)])

    np.testing.assert_array_equal(order(attached), order(ds))


def test_a_layer_alone_can_be_streamed(attached, covered):
    batch = next(iter(RawLoader(attached.search(ids=covered), modalities=["elevation"], batch_size=4)))

    assert set(batch) == {"elevation", "elevation_present", "labels", "index", "valid"}
    assert batch["elevation"].dtype == np.int16
    assert batch["elevation_present"].all()


def test_a_run_goes_on_where_it_was(attached):
    loader = RawLoader(attached.search(), batch_size=8)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    expected = {name: array.copy() for name, array in next(batches).items()}
    batches.close()

    again = RawLoader(attached.search(), batch_size=8)
    again.load_state_dict(state)

    for name, array in next(iter(again)).items():
        np.testing.assert_array_equal(array, expected[name])


def test_shards_are_tars_of_safetensors_in_the_rows_of_the_root(elevation, root, covered):
    for path in sorted(root.glob("shards/*/s2/*.tar")):
        group = path.parent.parent.name
        mine = f"{elevation.url}/shards/{group}/elevation/{path.name.replace('-s2-', '-elevation-')}"
        with tarfile.open(path) as theirs, tarfile.open(mine.removeprefix("file://")) as ours:
            names = [m.name.split(".")[0] for m in theirs if m.name.endswith(".safetensors")]
            members = [m for m in ours if m.name.endswith(".safetensors")]
            assert [m.name for m in members] == [f"{name}.elevation.safetensors" for name in names]
            for name, member in zip(names, members, strict=True):
                values = load_safetensors(ours.extractfile(member).read())["dem"]
                assert (values != -9999).all() == (name in covered)


def test_statistics_are_those_of_the_patches_for_training(elevation, ds, covered):
    train = set(ds.search(split="train").patch_ids) & set(covered)
    values = np.stack([elevation_of(patch_id) for patch_id in train]).astype(np.float64)

    found = elevation.manifest.statistics["dem"]

    assert found["count"] == values.size
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std())
    assert (found["min"], found["max"]) == (values.min(), values.max())


def test_the_table_says_what_is_there(attached, covered):
    column = attached.search().column("elevation:present").to_pylist()

    ids = attached.search().patch_ids
    assert [i for i, there in zip(ids, column, strict=True) if there] == covered


def test_a_dataset_with_layers_is_picklable(attached):
    again = pickle.loads(pickle.dumps(attached))

    assert_same(
        samples(again.search(), modalities=["elevation"]),
        samples(attached.search(), modalities=["elevation"]),
    )


def test_an_export_of_the_root_takes_the_layer_of_the_root(ds, elevation, covered, tmp_path):
    ds.search(split="train").export_lmdb(tmp_path / "lmdb", modalities=["s1"])

    exported = rc.open(tmp_path / "lmdb", layers=[elevation])

    for patch_id, arrays in samples(exported.search()).items():
        assert arrays["elevation_present"] == (patch_id in covered)
        if patch_id in covered:
            np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))


def test_two_layers_stand_side_by_side(attached, ds, tmp_path):
    ids = ds.selection.patch_ids
    vectors = rc.write_layer(
        tmp_path / "v", ds, name="vectors", tensors=EMBEDDING, patches=((i, embedding_of(i)) for i in ids)
    )

    both = attached.with_layers(vectors)

    assert both.modalities == ("s2", "s1", "map", "elevation", "vectors")
    for patch_id, arrays in samples(both.search(), modalities=["vectors", "elevation"]).items():
        np.testing.assert_array_equal(arrays["vectors"], embedding_of(patch_id))
        assert arrays["vectors_present"]


@pytest.mark.s3
def test_a_layer_lies_in_a_bucket_of_its_own_with_credentials_of_its_own(ds, covered, s3_bucket, tmp_path):
    options = s3_bucket.storage_options
    rc.write_layer(
        f"{s3_bucket.url}/e",
        ds,
        name="elevation",
        tensors=ELEVATION,
        patches=elevations(covered),
        storage_options=options,
    )
    layer = rc.open_layer(f"{s3_bucket.url}/e", options)

    found = samples(rc.open(ds.url, layers=[layer]).search(), cache_dir=tmp_path / "cache")

    for patch_id in covered:
        np.testing.assert_array_equal(found[patch_id]["elevation"], elevation_of(patch_id))


# -- writing -----------------------------------------------------------------------------------------


def write(ds, dest, ids, **options):
    return rc.write_layer(
        dest, ds, **{"name": "elevation", "tensors": ELEVATION, "patches": elevations(ids), **options}
    )


def tree(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "_build" not in str(p)
    }


def test_the_order_in_which_patches_come_does_not_matter(ds, covered, elevation, tmp_path):
    write(ds, tmp_path / "a", covered)
    write(ds, tmp_path / "b", sorted(covered, key=lambda i: i[::-1]))

    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_run_that_was_stopped_asks_for_what_is_missing(ds, covered, tmp_path):
    def stops():
        yield from elevations(covered[:20])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(ds, tmp_path / "a", [], patches=stops(), scratch=tmp_path / "scratch")
    with pytest.raises(NotFoundError, match="no layer is published"):
        rc.open_layer(tmp_path / "a")
    asked = []

    def rest(ids):
        asked.extend(ids)
        return elevations(i for i in ids if i in covered)

    write(ds, tmp_path / "a", [], patches=rest, scratch=tmp_path / "scratch")

    assert len(asked) == NUM_PATCHES - 20
    write(ds, tmp_path / "b", covered)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not any((tmp_path / "scratch").iterdir())


def test_a_layer_that_is_done_is_left_as_it_is(ds, covered, tmp_path):
    write(ds, tmp_path / "a", covered)

    again = write(ds, tmp_path / "a", [], patches=lambda _: pytest.fail("nothing is missing"))

    assert again.manifest.coverage == len(covered)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "map"}, ValueError, "has 'map' already"),
        ({"name": "No Name"}, ValueError, "cannot be named 'No Name'"),
        ({"name": "reben"}, ValueError, "cannot be named 'reben'"),
        ({"patches": [("nobody", np.zeros((120, 120), np.int16))]}, SourceError, "nobody is no patch of"),
        ({"patches": "twice"}, SourceError, "comes twice"),
        ({"patches": "float"}, InvalidPatchError, "dem must be int16"),
        ({"patches": "small"}, InvalidPatchError, r"of shape \(120, 120\), got int16 of shape \(60, 60\)"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(ds, tmp_path, options, error, message):
    first = ds.selection.patch_ids[0]
    given = {
        "twice": [(first, elevation_of(first))] * 2,
        "float": [(first, np.zeros((120, 120), np.float32))],
        "small": [(first, np.zeros((60, 60), np.int16))],
    }
    if isinstance(options.get("patches"), str):
        options = {"patches": given[options["patches"]]}

    with pytest.raises(error, match=message):
        write(ds, tmp_path / "a", [first], **options)

    with pytest.raises(NotFoundError):
        rc.open_layer(tmp_path / "a")


def test_ids_of_no_patch_are_left_out_when_that_is_said(ds, covered, tmp_path):
    given = [("nobody", np.zeros((120, 120), np.int16)), *elevations(covered)]

    layer = write(ds, tmp_path / "a", [], patches=given, allow_missing=1)

    assert layer.manifest.coverage == len(covered)


def test_something_else_at_the_place_is_refused(ds, covered, tmp_path, root):
    write(ds, tmp_path / "a", covered)

    with pytest.raises(ConflictError, match="another title"):
        write(ds, tmp_path / "a", covered, title="Other heights")
    with pytest.raises(ConflictError, match="is not empty"):
        write(ds, root, covered)


def test_a_layer_of_another_root_is_refused(elevation, tmp_path):
    synthetic_root(tmp_path / "other", 20)

    with pytest.raises(ConflictError, match="was made for the root"):
        rc.open(tmp_path / "other", layers=[elevation])


def test_an_export_takes_layers_of_its_own(ds, covered, tmp_path):
    ds.search(split="train").export_lmdb(tmp_path / "lmdb", modalities=["s1"])
    exported = rc.open(tmp_path / "lmdb")
    some = [i for i in exported.selection.patch_ids if i in covered]

    layer = write(exported, tmp_path / "a", some)

    attached = rc.open(tmp_path / "lmdb", layers=[layer])
    found = samples(attached.search(), seed=5)
    assert list(found) == list(samples(exported.search(), seed=5))  # the order stays
    for patch_id, arrays in found.items():
        assert arrays["elevation_present"] == (patch_id in covered)
        if patch_id in covered:
            np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))
    loader = RawLoader(attached.search(), batch_size=5, seed=5)
    whole = [batch["elevation"].copy() for batch in loader]
    loader.set_epoch(0)
    running = iter(loader)
    next(running)
    resumed = RawLoader(attached.search(), batch_size=5, seed=5)
    resumed.load_state_dict(loader.state_dict())
    assert all(np.array_equal(b["elevation"], w) for b, w in zip(resumed, whole[1:], strict=True))
    assert not verify_layer(layer, root=exported, deep=True).problems
    with pytest.raises(ConflictError, match=r"made for an export of .* rebase"):
        ds.with_layers(layer)
    again = rebase_layer(tmp_path / "b", ds, layer)
    assert ds.with_layers(again).search(has="elevation").patch_ids == [
        i for i in ds.selection.patch_ids if i in some
    ]


def test_an_export_reads_a_table_of_more_patches_as_it_is(ds, tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
    ds.search(split="test").export_lmdb(tmp_path / "lmdb", modalities=["s1"])
    ids = ds.selection.patch_ids
    lines = [f"{patch_id},{number}\n" for number, patch_id in enumerate(ids)]
    (tmp_path / "scores.csv").write_text("".join(["patch_id,score\n", *lines]))

    of_root = rc.open(ds.url, layers=[tmp_path / "scores.csv"])
    exported = rc.open(tmp_path / "lmdb", layers=[tmp_path / "scores.csv"])

    assert of_root.layers["scores"].manifest.coverage == 60
    assert exported.layers["scores"].manifest.coverage == len(exported) < 60
    frame = exported.selection.to_pandas()
    assert frame["scores:score"].tolist() == [ids.index(i) for i in frame.patch_id]


@pytest.mark.parametrize(
    "patches", [{"a": np.zeros(24, np.float16)}, [("a", [0.0] * 24)], ["ab"], [("a", {"vector": [0.0] * 24})]]
)
def test_what_is_no_pair_of_a_patch_and_its_arrays_is_refused(ds, tmp_path, patches):
    with pytest.raises(TypeError, match="patches must give pairs of a patch id and a NumPy array"):
        rc.write_layer(tmp_path / "a", ds, name="a", tensors=EMBEDDING, patches=patches)


def test_layers_and_roots_are_told_apart(ds, elevation):
    with pytest.raises(NotFoundError, match=r"is a layer: .*rc.open\(ROOT, layers="):
        rc.open(elevation.url)
    with pytest.raises(NotFoundError, match=r"is a root and not a layer"):
        rc.open(ds.url, layers=[ds.url])
    with pytest.raises(TypeError, match="layers must be a list, such as"):
        rc.open(ds.url, layers=elevation.url)


def test_an_export_does_not_take_twice_what_it_took_along(attached, ds, elevation, tmp_path):
    scores = rc.write_table(
        tmp_path / "t", ds, name="t", table=pa.table({"patch_id": ds.selection.patch_ids, "x": range(60)})
    )
    attached.with_layers(scores).search(limit=4).export_lmdb(
        tmp_path / "lmdb", modalities=["s1", "elevation"]
    )

    for layer in (elevation, scores):
        with pytest.raises(ValueError, match=f"two things named '{layer.name}'"):
            rc.open(tmp_path / "lmdb", layers=[layer])


def test_names_are_different(attached, elevation):
    with pytest.raises(ValueError, match="two things named 'elevation'"):
        attached.with_layers(elevation)


# -- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer.json", "rows.parquet", "objects.parquet", "shard"])
def test_a_flipped_bit_in_any_object_of_a_layer_is_found_when_it_is_read(ds, covered, root, tmp_path, name):
    write(ds, tmp_path / "a", covered)
    path = tmp_path / "a" / name if name != "shard" else next((tmp_path / "a").glob("shards/*/*/*.tar"))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        place = int(rng.integers(len(data)))
        if name == "shard":  # the record's JSON and padding are nobody's
            place = 512 + place % 20_000
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)

        try:
            found = samples(rc.open(root, layers=[tmp_path / "a"]).search(), modalities=["elevation"])
        except (ChecksumError, rc.RebenError):
            continue
        for patch_id, arrays in found.items():
            assert arrays["elevation_present"] == (patch_id in covered)
            if patch_id in covered:
                np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))
        # Only white space, of which JSON does not care, and what no reader looks at, may change unseen.
        assert name == "rows.parquet" or (name == "layer.json" and json.loads(changed) == json.loads(data))


def test_a_map_as_a_layer_is_the_map_of_a_root_without_one(tmp_path):
    synthetic_root(tmp_path / "whole", 20)
    whole = rc.open(tmp_path / "whole")
    pixels = samples(whole.search(), modalities=["map"])
    whole.search().export_lmdb(tmp_path / "lmdb", modalities=["s2"])
    build(make_plan(*open_source(str(tmp_path / "lmdb")), open_store(tmp_path / "bare")))
    bare = rc.open(tmp_path / "bare")
    assert bare.schema.map_array is None

    layer = rc.write_layer(
        tmp_path / "map",
        bare,
        name="map",
        tensors=TensorSpec(name="class", shape=(120, 120), dtype="uint16", pixel_m=10),
        patches=((i, arrays["map"]) for i, arrays in pixels.items()),
        is_map=True,
    )

    ds = bare.with_layers(layer)
    assert ds.schema.map_array == "map"
    assert_same(
        {i: {"map": a["map"]} for i, a in samples(ds.search()).items()},
        {i: {"map": a["map"]} for i, a in pixels.items()},
    )
