"""The manifests of roots and exports as values: what is read is what was written, and nothing wrong is taken."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import RebenError
from reben_cloud.formats.parquet import Seal
from reben_cloud.root.digest import DIGEST, sealed
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.manifest import Group, InvalidManifestError, Manifest, ShardOrder
from reben_cloud.schema import Classes, Modality, Schema, TensorSpec

SEAL = Seal(nbytes=1000, footer_nbytes=100, footer_xxh3="0123456789abcdef")
COUNT = Schema(
    name="Counts",
    modalities=(Modality(name="count", tensors=(TensorSpec(name="count", shape=(4,), dtype="uint8"),)),),
    classes=Classes(names=("few", "many"), colors=("#000000", "#ffffff"), codes=((1,), (2,))),
    patch_m=100,
)


def root_of(schema=REBEN):
    return Manifest.of(
        created_from="synthetic patches",
        schema=schema,
        metadata_columns=["patch_id", "labels"],
        num_patches=7,
        products=["A", "B"],
        countries=["Finland"],
        fingerprint="0123456789abcdef",
        group_sizes={"train": 6, "test": 1},
        shard_samples=4,
        zarr_shard_patches=64,
        order=ShardOrder(kind="stratified", seed=3),
    ).vouching_for(patches=SEAL, objects_sha256="ab" * 32)


def catalog_of():
    return Manifest.of(
        created_from="metadata",
        schema=REBEN.only([]),
        metadata_columns=["patch_id"],
        num_patches=7,
        products=["A"],
        countries=[],
        fingerprint="0" * 16,
    ).vouching_for(patches=SEAL, objects_sha256="ab" * 32)


def export_of(root, modalities, kind="lmdb", settings=None, **more):
    return ExportManifest.of_root(
        root,
        kind=kind,
        settings=settings or {},
        identity="cd" * 32,
        nbytes=123,
        modalities=modalities,
        num_patches=3,
        products=["A"],
        exported_groups={"train": 3},
        patches=SEAL,
        files={"patches.parquet": (1000, "f" * 16)},
        more=more,
    )


KINDS = {
    "root": root_of(),
    "another schema": root_of(COUNT),
    "catalog": catalog_of(),
    "export": export_of(root_of(), ["s1"]),
    "export of another schema": export_of(root_of(COUNT), ["count"]),
    "safetensors": export_of(root_of(), ["map"], "safetensors", {"patches_per_file": 1000}),
    "texts": export_of(root_of(), ["s2"], "jsonl", num_files=3, num_texts=9, left_out={"a flip": 1}),
}


@pytest.mark.parametrize("manifest", KINDS.values(), ids=KINDS)
def test_what_is_read_is_what_was_written(manifest):
    read = type(manifest).from_bytes(manifest.to_bytes(), where="here")

    assert read == manifest
    assert read.to_bytes() == manifest.to_bytes()
    assert pickle.loads(pickle.dumps(read)) == read
    assert read.to_json() == dict(read) == json.loads(manifest.to_bytes())


def test_a_root_says_this():
    manifest = root_of()

    assert manifest.version == 2
    assert manifest.has_digest
    assert manifest.created_from == "synthetic patches"
    assert manifest.schema == REBEN
    assert manifest.modalities == ("s2", "s1", "map")
    assert manifest.metadata_columns == ["patch_id", "labels"]
    assert manifest.num_patches == 7
    assert manifest.products == ("A", "B")
    assert manifest.countries == ("Finland",)
    assert manifest.fingerprint == "0123456789abcdef"
    assert manifest.groups == {
        "train": Group(num_samples=6, num_shards=2),
        "test": Group(num_samples=1, num_shards=1),
    }
    assert (manifest.shard_samples, manifest.zarr_shard_patches) == (4, 64)
    assert manifest.order == ShardOrder(kind="stratified", seed=3)
    assert manifest.patches_parquet == SEAL
    assert manifest.objects_sha256 == "ab" * 32


def test_a_catalog_has_no_shards():
    manifest = catalog_of()

    assert (manifest.modalities, manifest.groups) == ((), {})
    assert (manifest.shard_samples, manifest.zarr_shard_patches) == (0, 0)
    assert manifest.order == ShardOrder(kind="none", seed=0)


def test_an_export_says_what_it_has_of_its_root():
    root = root_of()
    manifest = export_of(root, ["s1"])

    assert (manifest.kind, manifest.settings, manifest.identity) == ("lmdb", {}, "cd" * 32)
    assert (manifest.nbytes, manifest.num_patches, manifest.products) == (123, 3, ("A",))
    assert manifest.exported_groups == {"train": 3}
    assert manifest.files == {"patches.parquet": (1000, "f" * 16)}
    assert manifest.patches_per_file == 0
    assert manifest.schema == REBEN.only(["s1"])
    assert (manifest.groups, manifest.order, manifest.fingerprint) == (
        root.groups,
        root.order,
        root.fingerprint,
    )
    assert KINDS["safetensors"].patches_per_file == 1000
    assert (manifest.num_files, manifest.num_texts) == (None, None)
    assert (KINDS["texts"].num_files, KINDS["texts"].num_texts, KINDS["texts"]["left_out"]) == (
        *(3, 9),
        {"a flip": 1},
    )
    assert KINDS["export of another schema"].schema == COUNT


def test_an_export_of_a_root_of_the_first_version_has_its_schema_and_columns():
    first = {
        key: value
        for key, value in root_of().items()
        if key not in ("metadata", "schema", "patches_parquet", DIGEST)
    }
    root = Manifest({**first, "version": 1})

    manifest = export_of(root, ["s2", "map"])

    assert not root.has_digest
    assert root.patches_parquet is None
    assert (manifest.version, manifest.schema) == (2, REBEN.only(["s2", "map"]))
    assert manifest.metadata_columns == root.metadata_columns == OFFICIAL_SCHEMA.names


def test_nothing_changes_a_manifest():
    manifest = root_of()
    before = manifest.to_bytes()

    manifest["groups"]["train"]["num_samples"] = 5
    manifest["products"].append("C")
    manifest.to_json()["order"]["seed"] = 9
    manifest.groups.clear()
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.num_patches = 5
    with pytest.raises(TypeError):
        manifest["num_patches"] = 5

    assert manifest.to_bytes() == before


def test_a_manifest_does_not_share_what_it_is_made_of():
    document = root_of().to_json()
    manifest = Manifest(document)

    document["groups"]["train"]["num_samples"] = 5

    assert manifest == root_of()


def test_a_changed_document_is_sealed_again():
    document = {**root_of(), "created_from": "something else"}

    text = Manifest(document).to_bytes()

    assert text == Manifest(sealed(document)).to_bytes()
    assert Manifest.from_bytes(text, where="here").created_from == "something else"


def test_a_document_whose_digest_is_not_its_own_is_refused():
    text = root_of().to_bytes().replace(b"Finland", b"Ireland")

    with pytest.raises(InvalidManifestError, match="does not have its own digest"):
        Manifest.from_bytes(text, where="here")


def test_the_two_kinds_are_told_apart():
    with pytest.raises(InvalidManifestError, match="format is not 'reben_cloud export'"):
        ExportManifest.from_bytes(root_of().to_bytes(), where="here")
    with pytest.raises(InvalidManifestError, match="format is not 'reben_cloud root'"):
        Manifest.from_bytes(KINDS["export"].to_bytes(), where="here")


def test_a_newer_version_is_said_first():
    text = json.dumps({"format": Manifest.FORMAT, "version": 3}).encode()

    with pytest.raises(
        RebenError, match="here has format version 3, this reben_cloud reads up to 2; upgrade"
    ):
        Manifest.from_bytes(text, where="here")


def test_a_root_that_names_no_list_of_objects_is_not_published():
    document = root_of().to_json()
    del document["objects_sha256"]
    unpublished = Manifest(document)

    assert unpublished.objects_sha256 is None
    with pytest.raises(InvalidManifestError, match="objects_sha256 cannot be None"):
        Manifest.from_bytes(unpublished.to_bytes(), where="here")


WRONG = {
    "version": [None, True, "2", 0, 3],
    "created_from": [None, 1],
    "modalities": [None, "s2", [1], ["s2"], ["s2", "s1"], [[]]],
    "schema": [None, {}, 1],
    "metadata": [None, [], ["labels"], ["patch_id", "patch_id"], ["patch_id", 1]],
    "num_patches": [None, 0, 8, "7", True, 2**63],
    "products": [None, ["B", "A"], ["A", "A"], [1], [""]],
    "countries": [None, "Finland"],
    "groups": [None, [], {}, {"train": 7}, {"train": {"num_samples": 7, "num_shards": 1}}],
    "shard_samples": [None, 0, "4"],
    "zarr_shard_patches": [None, 0],
    "order": [None, {}, {"kind": "stratified"}, {"kind": 1, "seed": 0}],
    "fingerprint": [None, "0" * 15, "G" * 16],
    "patches_parquet": [{}, 1, {"nbytes": "x", "footer_nbytes": 1, "footer_xxh3": ""}],
    "objects_sha256": [1, "ab"],
}
WRONG_OF_EXPORT = {
    "exported_groups": [None, {}, {"train": 2}, {"test": 3}, {"other": 3}, {"train": "3"}],
    "files": [None, {"a": 1}, {"a": [1, "x"]}, {"a": [-1, "f" * 16]}],
    "settings": [None, 1],
    "identity": [None, "cd"],
    "nbytes": [None, -1],
    "kind": [None, 1, "safetensors"],
    "num_files": [None, "3", -1],
    "num_texts": [None, 1.5],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG for value in WRONG[key]])
def test_a_wrong_value_is_refused_though_it_is_sealed(key, value):
    with pytest.raises(InvalidManifestError):
        Manifest(sealed({**root_of(), key: value}))


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in WRONG_OF_EXPORT for value in WRONG_OF_EXPORT[key]]
)
def test_a_wrong_value_of_an_export_is_refused(key, value):
    with pytest.raises(InvalidManifestError):
        ExportManifest(sealed({**KINDS["export"], key: value}))


@pytest.mark.parametrize(
    "key", sorted({*root_of()} - {"format", "patches_parquet", "objects_sha256", DIGEST})
)
def test_a_key_that_is_missing_is_said(key):
    document = root_of().to_json()
    del document[key]

    with pytest.raises(InvalidManifestError):
        Manifest(sealed(document))
