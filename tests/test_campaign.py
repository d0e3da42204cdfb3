"""Damage anywhere in a root or an export is found: bits and bytes are flipped at random in every object."""

import json
import lzma
import random
import shutil
import tarfile
from pathlib import Path

import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ChecksumError, RebenError
from reben_cloud.root.manifest import InvalidManifestError, Manifest
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official

FLIPS = 4
"""Of each object, besides its first and its last byte."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign") / "root"
    table = official.table_of(6, num_products=1)
    build(make_plan(SyntheticSource(6), table, open_store(folder), options=PlacementOptions(shard_samples=4)))
    shutil.rmtree(folder / "_build")
    return folder


def objects_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb")


def found_in(folder):
    """What `verify` finds, or what opening says."""
    try:
        return verify(rc.open(folder)).problems
    except RebenError as error:
        return (str(error),)


def flips(path, number=FLIPS):
    """(Bytes with one of them changed, where): one bit, or the whole byte."""
    data, chance = path.read_bytes(), random.Random(path.name)
    places = {0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(number))}
    for at in sorted(places):
        mask = chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)])
        yield data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :], f"{path.name}: byte {at} ^ {mask}"


def missed(folder, **options):
    """Flips that nothing says anything of, and how many there were."""
    silent, total = [], 0
    for path in objects_of(folder):
        whole = path.read_bytes()
        for data, what in flips(path, **options):
            path.write_bytes(data)
            total += 1
            named = any(path.name in problem for problem in found_in(folder))
            silent += [] if named or means_the_same(path, whole, data) else [what]
        path.write_bytes(whole)
    return silent, total


def means_the_same(path, whole, data):
    """Whether a JSON document says what it said: one white space became another."""
    try:
        return path.suffix == ".json" and json.loads(data) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.slow
def test_every_flip_in_every_object_of_a_root_is_found(root):
    kinds = {path.relative_to(root).parts[0] for path in objects_of(root)}
    assert kinds >= {"manifest.json", "objects.parquet", "patches.parquet", "catalog.json", "bigearthnet-v2"}
    assert kinds >= {"zarr", "shards", "bigearthnet-v2-shards"}
    assert found_in(root) == ()

    silent, total = missed(root)

    assert silent == []
    assert total > 5 * len(objects_of(root))
    assert found_in(root) == ()


@pytest.mark.slow
def test_every_single_bit_of_a_manifest_is_found(root):
    """By the reader of manifests, which `rc.open` asks: of each hundred that it refuses, one is opened too."""
    path = root / "manifest.json"
    whole = path.read_bytes()
    silent, refused, opened = [], 0, 0
    for at in range(len(whole)):
        for bit in range(8):
            data = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
            try:
                Manifest.from_bytes(data, where=str(root))
            except (InvalidManifestError, RebenError):
                refused += 1
                if refused % 101:
                    continue
            path.write_bytes(data)
            opened += 1
            if not found_in(root):
                silent.append((at, bit, whole[at - 8 : at + 8]))
    path.write_bytes(whole)

    assert silent == []
    assert opened > len(whole) // 13


def values_of(document, path=()):
    """Every place of a value in a JSON document."""
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from values_of(value, (*path, key))
    else:
        yield path


def changed(document, path):
    """The document with another value there: a number one higher, a text with its middle letter changed."""
    found = json.loads(json.dumps(document))
    here = found
    for key in path[:-1]:
        here = here[key]
    value = here[path[-1]]
    middle = len(str(value)) // 2
    here[path[-1]] = (
        value + 1
        if isinstance(value, int)
        else value[:middle] + chr(ord(value[middle]) ^ 1) + value[middle + 1 :]
    )
    return found


UNKNOWABLE = {("created_from",), ("fingerprint",)}
"""What a root of the first version says of itself that nothing else in it says."""


def test_what_a_root_without_a_digest_says_is_derived_and_compared(tmp_path):
    data = Path(__file__).parent / "data" / "format-1" / "root.tar.xz"
    with lzma.open(data) as packed, tarfile.open(fileobj=packed) as tar:
        tar.extractall(tmp_path, filter="data")
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    silent = set()
    for place in values_of(document):
        path.write_text(json.dumps(changed(document, place), indent=2))
        silent |= set() if found_in(tmp_path) else {place}

    assert len(list(values_of(document))) == 25
    assert silent == UNKNOWABLE


@pytest.mark.slow
def test_every_flip_in_every_file_of_an_export_is_found(root, tmp_path):
    rc.open(root).search().export_lmdb(tmp_path / "out")

    silent, total = missed(tmp_path / "out", number=12)

    assert silent == []
    assert total > 12 * len(objects_of(tmp_path / "out"))


@pytest.mark.slow
def test_no_flip_in_the_metadata_or_coordinates_of_a_zarr_store_is_read(root):
    (store,) = (root / "zarr").iterdir()
    product = store.name.removesuffix(".zarr")
    coordinates = [
        p for name in ("patch_id", "labels", "x0", "time") for p in sorted((store / name / "c").rglob("*"))
    ]
    coordinates += sorted((store / "spatial_ref").glob("c*"))
    for path in [store / "zarr.json", *(p for p in coordinates if p.is_file())]:
        whole = path.read_bytes()
        for data, _ in flips(path, 2):
            path.write_bytes(data)
            with pytest.raises(
                ChecksumError,
                match=f"{path.relative_to(root)} is not the object that was written, its sha256 differs",
            ):
                rc.open(root).open_zarr(product).load()
        path.write_bytes(whole)
    assert rc.open(root).open_zarr(product).sizes["patch"] == 6
