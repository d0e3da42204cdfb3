"""Sources that lack a part, have more than their metadata, or are spelled and packed otherwise."""

import csv
import dataclasses
import gzip
import io
import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import reben_cloud as rc
from reben_cloud.bigearthnet.official import EXTRA_METADATA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, open_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import SourceError
from reben_cloud.sources.archives import ARCHIVES
from reben_cloud.sources.folders import FOLDERS, FolderSource, group_of
from reben_cloud.sources.merged import merge
from reben_cloud.sources.prepared import write_document
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.roots import RootSource
from reben_cloud.store import open_store
from tests import official
from tests.commands import told as run
from tests.formats.test_lmdb_records import records_of
from tests.formats.test_lmdb_records import write as write_lmdb

WHOLE = official.table_of(100)
SHORT = next(n for n, name in enumerate(WHOLE["s1_name"].to_pylist()) if len(name.split("_")[-1]) == 1)
TABLE = WHOLE.take([0, 20, SHORT, 50, 75, 99]).sort_by("patch_id").combine_chunks()
IDS = TABLE["patch_id"].to_pylist()
ALL = ("s2", "s1", "map")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    official.write_folders(folder, TABLE)
    return folder


@pytest.fixture(scope="module")
def truth(good, tmp_path_factory):
    """The root of the folders that lack nothing."""
    root = tmp_path_factory.mktemp("truth") / "root"
    build(open_plan(good, root)[0])
    return payloads_of(root)


@pytest.fixture
def tree(good, tmp_path):
    return shutil.copytree(good, tmp_path / "in")


def payloads_of(root):
    """Patch id -> the checksums of its payloads, of a root that is right."""
    dataset = rc.open(root)
    assert verify(dataset).problems == ()
    table = dataset.search().to_arrow()
    sums = [f"reben:{modality}_xxh3" for modality in ALL if f"reben:{modality}_xxh3" in table.column_names]
    assert sums
    return {row.pop("id"): row for row in table.select(["id", *sums]).to_pylist()}


def of(truth, ids):
    return {name: truth[name] for name in ids}


def lose_files(tree):
    """Of the first patch one band, of the second an empty band, of the third its radar images."""
    next(tree.rglob(f"{IDS[0]}_B05.tif")).unlink()
    next(tree.rglob(f"{IDS[1]}_reference_map.tif")).write_bytes(b"")
    shutil.rmtree(next(tree.rglob(TABLE["s1_name"][2].as_py())))


def test_patches_without_all_files_are_left_out_on_request_and_listed(tree, truth, tmp_path):
    lose_files(tree)
    root = tmp_path / "root"

    code, _, error = run("build", tree, root)
    assert code == 1
    assert "1 patch is incomplete (1 lacks s1), 5 complete" in error
    assert IDS[2] in error
    assert "--incomplete skip" in error
    assert not root.exists()

    code, text, error = run("build", tree, root, "--incomplete", "skip", "--json")
    said = json.loads(text)

    assert code == 0
    assert payloads_of(root) == of(truth, IDS[3:])
    rows = list(csv.DictReader(io.StringIO((root / "incomplete.csv").read_text())))
    assert rows == [
        {"patch_id": name, "lacks": lacks}
        for name, lacks in sorted(zip(IDS[:3], ("s2", "map", "s1"), strict=True))
    ]
    assert said["incomplete"] == {"num_patches": 3, "first": sorted(IDS[:3])}
    assert said["num_incomplete"] == said["metadata_rows_without_patch"] == 3
    assert "3 incomplete patches are left out, and listed in" in error
    assert rc.open(root).manifest.incomplete.num_patches == 3
    assert "3 incomplete" in run("info", root)[1]


@pytest.mark.parametrize("kind", ["folders", "several folders", "an archive"])
def test_a_modality_of_which_no_patch_is_whole_is_not_left_out_unasked(kind, tree, tmp_path):
    sources, root = [tree], tmp_path / "root"
    if kind == "an archive":
        sources = [tmp_path / "in"]
        write_packed(tmp_path / "in")
        (tmp_path / "in" / "BigEarthNet-S2.tar.gzac").unlink()
    if kind == "several folders":
        sources = [tree / folder for folder in FOLDERS.values()]
    for path in tree.rglob("*_B01.tif"):
        path.unlink()

    _, _, error = run("build", *sources, root, "--incomplete", "skip", "--scratch", tmp_path / "scratch")

    assert "no s2 patch there has all of its files; complete the source" in error
    assert "build without it (--modality s1 --modality map)" in error
    assert not root.exists()


def test_where_all_patches_are_incomplete_one_is_named(tree, tmp_path):
    for number, name in enumerate(IDS):
        next(tree.rglob(f"{name}_{'B01' if number % 2 else 'reference_map'}.tif")).unlink()

    with pytest.raises(
        SourceError, match=rf"no patch is left .* 6 patches are incomplete.* {IDS[0]}.* lacks map"
    ):
        open_plan(tree, tmp_path / "root", incomplete="skip")


def test_what_is_asked_of_incomplete_patches_is_checked(tree, tmp_path):
    with pytest.raises(ValueError, match="unknown way with incomplete patches 'ignore'"):
        open_plan(tree, tmp_path / "root", incomplete="ignore")
    with pytest.raises(ValueError, match="unknown way with incomplete patches 'ignore'"):
        open_source(tree, incomplete="ignore")


def test_an_archive_that_was_not_loaded_to_its_end_gives_what_it_has(truth, tmp_path, caplog):
    folder = tmp_path / "in"
    official.write_archives(folder, TABLE)
    for modality in ALL:
        path = folder / ARCHIVES[modality]
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * (0.7 if modality == "s1" else 1))])

    with pytest.raises(SourceError, match="cut short"):
        build(open_plan(folder, tmp_path / "a", scratch=tmp_path / "scratch")[0])
    plan, _ = open_plan(folder, tmp_path / "b", scratch=tmp_path / "scratch", incomplete="skip")
    told = [line for line in caplog.messages if "cut short" in line]
    assert len(told) == 1
    assert f"{ARCHIVES['s1']}: cut short" in told[0]
    assert "what comes after that is left out" in told[0]
    build(plan)

    found = payloads_of(tmp_path / "b")
    assert 0 < len(found) < 6
    assert found == of(truth, found)
    assert len(found) + rc.open(tmp_path / "b").manifest.incomplete.num_patches == 6


def test_an_archive_of_some_patches_alone_names_the_way_out(tmp_path):
    folder = tmp_path / "in"
    official.write_archives(folder, TABLE)
    official.write_archives(tmp_path / "few", TABLE.slice(0, 3))
    shutil.copy(tmp_path / "few" / ARCHIVES["map"], folder)

    with pytest.raises(SourceError, match=r"3 of 6 patches .*whole archive.*--incomplete skip"):
        build(open_plan(folder, tmp_path / "root", scratch=tmp_path / "scratch")[0])


# -- metadata -------------------------------------------------------------------------------------


def test_metadata_of_some_patches_are_a_selection(tree, truth, tmp_path):
    pq.write_table(TABLE.slice(0, 2), tree / "metadata.parquet")

    code, text, error = run("build", tree, tmp_path / "root", "--json")

    assert code == 0
    assert payloads_of(tmp_path / "root") == of(truth, IDS[:2])
    assert json.loads(text)["not_in_metadata"] == {"s2": 4, "s1": 4, "map": 4}
    assert "4 s2 patches are in the source and in no row of the metadata, and not taken" in error


@pytest.mark.parametrize("kind", ["root", "safetensors"])
def test_metadata_that_are_named_are_a_selection_of_what_has_its_own(kind, good, truth, tmp_path):
    pq.write_table(TABLE.slice(0, 2), tmp_path / "few.parquet")
    source, root = tmp_path / "source", tmp_path / "root"
    build(open_plan(good, source)[0])
    if kind != "root":
        rc.open(source).search().export_safetensors(source := tmp_path / "export")

    code, _, error = run("build", source, root, "--metadata", tmp_path / "few.parquet")

    assert code == 0
    assert payloads_of(root) == of(truth, IDS[:2])
    assert "4 s2 patches are in the source and in no row of the metadata, and not taken" in error


def test_an_lmdb_with_metadata_of_more_patches_opens_as_a_selection_and_says_so(tmp_path, caplog):
    write_lmdb(tmp_path / "lmdb", records_of(TABLE.slice(0, 2), ALL), TABLE)

    dataset = rc.open(tmp_path / "lmdb")

    assert len(dataset) == 2
    assert f"{len(TABLE) - 2} of {len(TABLE)} rows of the metadata have no patch in the source" in caplog.text


def test_an_lmdb_with_metadata_of_some_patches_opens_as_a_selection(tmp_path, caplog):
    write_lmdb(tmp_path / "lmdb", records_of(TABLE, ALL), TABLE)
    pq.write_table(TABLE.slice(0, 2), tmp_path / "lmdb" / "metadata.parquet")

    dataset = rc.open(tmp_path / "lmdb")

    assert sorted(dataset.search().patch_ids) == sorted(IDS[:2])
    assert "4 s2 patches are in the source and in no row of the metadata, and not taken" in caplog.text
    assert f"all others are in {EXTRA_METADATA}" in caplog.text


@pytest.mark.parametrize("flag", [False, True], ids=["the one", "the other"])
def test_where_one_official_metadata_file_is_missing_it_is_named(flag, tree, tmp_path):
    place = TABLE.column_names.index("contains_seasonal_snow")
    rows = TABLE.slice(0, 2).set_column(place, "contains_seasonal_snow", pa.array([flag, flag]))
    pq.write_table(rows, tree / "metadata.parquet")

    _, _, error = run("build", tree, tmp_path / "root", "--dry-run")

    assert f"all others are in {'metadata.parquet' if flag else EXTRA_METADATA}: put it beside" in error


# -- other spellings and packings -----------------------------------------------------------------


def padded(name):
    *rest, x, y = name.split("_")
    return "_".join([*rest, f"{x:0>2}", f"{y:0>2}"])


def test_capital_endings_and_padded_names_are_read(tree, truth, tmp_path):
    names = TABLE["s1_name"].to_pylist()
    assert any(padded(name) != name for name in names)
    for path in list(tree.rglob("*.tif")):
        path.rename(path.with_suffix(".TIF"))
    for name in names:
        folder = next(tree.rglob(name))
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.replace(name, padded(name))))
        folder.rename(folder.with_name(padded(name)))

    build(open_plan(tree, tmp_path / "root")[0])

    assert payloads_of(tmp_path / "root") == truth
    assert sorted(rc.open(tmp_path / "root").search().to_pandas()["s1_name"]) == sorted(names)


def test_an_lmdb_with_padded_names_is_built_from_and_opened(truth, tmp_path):
    records = {}
    for key, value in dict(records_of(TABLE, ALL)).items():
        name = key.decode()
        records[padded(name).encode() if name.startswith("S1") else key] = value
    write_lmdb(tmp_path / "lmdb", records, TABLE)

    build(open_plan(tmp_path / "lmdb", tmp_path / "root")[0])
    dataset = rc.open(tmp_path / "lmdb")

    assert payloads_of(tmp_path / "root") == truth
    assert payloads_of_samples(dataset) == payloads_of_samples(rc.open(tmp_path / "root"))


def payloads_of_samples(dataset):
    return {
        patch_id: {name: array.values.tobytes() for name, array in dataset.open_patch(patch_id).items()}
        for patch_id in IDS
    }


def gzipped(modality):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in official.members(modality, TABLE):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_packed(folder):
    """S2 as parts of a gzip, S1 as a gzip, the maps as a plain tar."""
    folder.mkdir(exist_ok=True)
    pq.write_table(TABLE, folder / "metadata.parquet")
    data = gzipped("s2")
    third = len(data) // 3
    for number, part in enumerate(("aa", "ab", "ac")):
        piece = data[number * third :] if part == "ac" else data[number * third : (number + 1) * third]
        (folder / f"BigEarthNet-S2.tar.gz{part}").write_bytes(piece)
    (folder / "BigEarthNet-S1.tar.gz").write_bytes(gzipped("s1"))
    (folder / "Reference_Maps.tar").write_bytes(gzip.decompress(gzipped("map")))


def test_gzip_in_parts_and_plain_tars_are_read(truth, tmp_path):
    write_packed(tmp_path / "in")

    build(open_plan(tmp_path / "in", tmp_path / "root", scratch=tmp_path / "scratch")[0])

    assert payloads_of(tmp_path / "root") == truth


def test_parts_at_a_url_are_read(truth, tmp_path):
    write_packed(tmp_path / "in")
    store = open_store(f"memory://{tmp_path.name}/packed")
    for file in (tmp_path / "in").iterdir():
        store.put(file.name, file.read_bytes())

    build(open_plan(store.url, tmp_path / "root", scratch=tmp_path / "scratch")[0])

    assert payloads_of(tmp_path / "root") == truth


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        pytest.param("aa", "a later part of an archive, which is read from its first", id="the first"),
        pytest.param(
            "ab", r"its part \S*\.tar\.gzab is not there, though \S*\.tar\.gzac is", id="one between"
        ),
        pytest.param("ac", "its last part is not there", id="the last"),
    ],
)
def test_a_part_that_is_missing_is_an_error(missing, told, tmp_path):
    write_packed(tmp_path / "in")
    (tmp_path / "in" / f"BigEarthNet-S2.tar.gz{missing}").unlink()

    with pytest.raises(SourceError, match=told):
        build(open_plan(tmp_path / "in", tmp_path / "root", scratch=tmp_path / "scratch")[0])


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_a_pixel_that_is_not_what_was_packed_is_never_built(packing, tmp_path):
    """The checksum stands at the very end, and what was read before must not be taken the next time."""
    folder, root, scratch = tmp_path / "in", tmp_path / "root", tmp_path / "scratch"
    official.write_archives(folder, TABLE)
    (folder / ARCHIVES["s2"]).unlink()
    tar = gzip.decompress(gzipped("s2")) + bytes(4 << 20)  # more than is read at once
    packed = bytearray(
        gzip.compress(tar, 0)
        if packing == "gzip"
        else zstandard.ZstdCompressor(level=-1000, write_checksum=True).compress(tar)
    )
    pixels = next(data for name, data in official.members("s2", TABLE) if name.endswith("_B02.tif"))[-64:]
    packed[packed.index(pixels) + 10] ^= 1
    (folder / f"BigEarthNet-S2.tar.{'gz' if packing == 'gzip' else 'zst'}").write_bytes(packed)

    for _ in range(2):
        with pytest.raises(SourceError, match="or damaged"):
            build(open_plan(folder, root, scratch=scratch)[0])

    assert not (root / "manifest.json").exists()


# -- several sources ------------------------------------------------------------------------------


def test_two_lmdbs_and_an_archive_are_one_source(truth, tmp_path):
    for modality in ("s2", "s1"):
        write_lmdb(tmp_path / modality, records_of(TABLE, (modality,)), TABLE)
    official.write_archives(tmp_path / "zst", TABLE, ["map"])
    sources = [tmp_path / "s2", tmp_path / "s1", tmp_path / "zst" / ARCHIVES["map"]]
    root = tmp_path / "root"

    code, text, _ = run("build", *sources, root, "--scratch", tmp_path / "scratch")

    assert code == 0
    assert text.endswith("s2 6, s1 6, map 6\n")
    assert payloads_of(root) == truth
    source, _ = open_source(sources)
    assert verify(rc.open(root), against=source).problems == ()


def test_patches_of_one_modality_may_be_spread_over_folders(tree, truth, tmp_path):
    other = tmp_path / "other"
    for name in IDS[:3]:
        folder = tree / FOLDERS["s2"] / group_of("s2", name) / name
        target = other / folder.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)

    build(open_plan([tree, other], tmp_path / "root")[0])
    assert payloads_of(tmp_path / "root") == truth

    shutil.copytree(target, tree / target.relative_to(other))
    with pytest.raises(SourceError, match=f"{target.name}: .* has this s2 patch twice"):
        open_plan([tree, other], tmp_path / "again")


def test_of_two_folders_the_one_that_has_the_whole_patch_is_read(tree, truth, tmp_path):
    """The last of a download was cut off, and loaded again with the rest into another folder."""
    other = tmp_path / "other"
    for name in IDS[:3]:
        folder = tree / FOLDERS["s2"] / group_of("s2", name) / name
        shutil.copytree(folder, other / folder.relative_to(tree))
        for file in sorted(folder.iterdir())[2:]:
            file.unlink()

    build(open_plan([tree, other], tmp_path / "root", incomplete="skip")[0])

    assert payloads_of(tmp_path / "root") == truth


def test_a_root_without_maps_and_the_maps_are_one_source(tree, truth, tmp_path):
    build(open_plan(tree, tmp_path / "images", modalities=["s2", "s1"])[0])

    build(open_plan([tmp_path / "images", tree / "Reference_Maps"], tmp_path / "root")[0])

    assert payloads_of(tmp_path / "root") == truth


def test_a_root_of_some_patches_lacks_the_others(good, truth, tmp_path):
    pq.write_table(TABLE.slice(0, 4), tmp_path / "few.parquet")
    few, root = tmp_path / "few", tmp_path / "root"
    build(open_plan(good, few, modalities=["s2", "s1"], metadata_paths=[tmp_path / "few.parquet"])[0])
    sources, metadata = [few, good / "Reference_Maps"], [good / "metadata.parquet"]

    with pytest.raises(SourceError, match=r"2 patches are incomplete \(2 lack s2, 2 lack s1\), 4 complete"):
        open_plan(sources, root, metadata_paths=metadata)
    build(open_plan(sources, root, metadata_paths=metadata, incomplete="skip")[0])

    assert payloads_of(root) == of(truth, IDS[:4])
    assert rc.open(root).manifest.incomplete.num_patches == 2


def test_archives_of_which_nothing_is_wanted_are_not_read(tree, tmp_path):
    folder, root = tmp_path / "in", tmp_path / "root"
    write_packed(folder)
    (folder / "Reference_Maps.tar").write_bytes(b"not an archive")
    sources, wanted = [folder, tree / FOLDERS["map"]], ["s2", "s1"]

    plan, _ = open_plan(sources, root, modalities=wanted, incomplete="skip", scratch=tmp_path / "scratch")

    assert plan.matched.rows["patch_id"].to_pylist() == IDS
    assert "Reference_Maps" not in plan.source.describe()


def test_a_dataset_of_ones_own_with_the_same_bands_is_not_merged(tree, tmp_path):
    classes = dataclasses.replace(REBEN.classes, label_rule="majority")
    write_document(tree, dataclasses.replace(REBEN, name="Mine", classes=classes))
    shutil.copytree(tree / FOLDERS["map"], maps := tmp_path / "maps")

    with pytest.raises(SourceError, match=r"is of another dataset \(Mine\), and is not merged"):
        open_plan([tree, maps], tmp_path / "root", modalities=["s2", "s1"])


def test_roots_of_the_first_versions_are_official(good):
    """They did not list the codes of the map that have no class."""
    first = dataclasses.replace(REBEN, classes=dataclasses.replace(REBEN.classes, without_class=()))
    source = FolderSource({m: (str(good / FOLDERS[m]),) for m in ("s2", "s1")})
    old = RootSource(open_store("memory://first"), first.only(["map"]), TABLE)

    merged = merge([source, old])

    assert set(merged.names()) == {"s2", "s1", "map"}


def test_what_is_unpacked_and_left_out_is_told_when_it_is(truth, tmp_path):
    """A share tells of a file once it is there, and what is published is not unpacked again."""
    write_lmdb(tmp_path / "images", records_of(TABLE, ("s2", "s1")), TABLE)
    official.write_archives(tmp_path / "zst", TABLE.slice(0, 4), ["map"])
    pq.write_table(TABLE, tmp_path / "metadata.parquet")
    root, archive = tmp_path / "root", tmp_path / "zst" / ARCHIVES["map"]
    options = (
        "--incomplete",
        "skip",
        "--metadata",
        tmp_path / "metadata.parquet",
        "--scratch",
        tmp_path / "scratch",
    )

    told = [
        run(
            "build",
            tmp_path / "images",
            archive,
            root,
            *options,
            "--workers-total",
            2,
            "--worker-index",
            index,
        )
        for index in (0, 1, 0)
    ]

    assert [code for code, _, _ in told] == [0, 0, 0]
    assert ["archives are unpacked first" in error for _, _, error in told] == [True, True, False]
    assert ["2 incomplete patches are left out" in error for _, _, error in told] == [False, True, True]
    assert payloads_of(root) == of(truth, IDS[:4])


def test_what_an_lmdb_is_said_to_be_is_said_once(tmp_path):
    write_lmdb(tmp_path / "images", records_of(TABLE, ("s2", "s1")), TABLE)

    with pytest.raises(SourceError, match=r"has no map; it has \S+ \(LMDB\)$"):
        open_plan(tmp_path / "images", tmp_path / "root", modalities=["map"])


def test_what_does_not_belong_together_is_refused(tree, tmp_path):
    official.write_archives(tmp_path / "zst", TABLE, ["map"])

    with pytest.raises(SourceError, match=r"map is in .* and .*: name one of them"):
        open_plan([tree, tmp_path / "zst"], tmp_path / "root")
    with pytest.raises(SourceError, match="has no s1; it has s2, map"):
        open_plan([tree / FOLDERS["s2"], tmp_path / "zst"], tmp_path / "root", modalities=["s1", "s2"])
    (tmp_path / "maps").mkdir()
    os.rename(tree / FOLDERS["map"], tmp_path / "maps" / FOLDERS["map"])
    pq.write_table(TABLE.slice(0, 4), tmp_path / "maps" / "metadata.parquet")
    with pytest.raises(SourceError, match=r"2 times in the metadata; .* name the files that are meant"):
        open_plan([tree, tmp_path / "maps"], tmp_path / "root")
    code, _, error = run("build", tree, tmp_path / "zst", tmp_path / "root", "--split", "train")
    assert code == 2
    assert "several sources are built whole" in error
