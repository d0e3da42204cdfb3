"""What a build takes of what is there, what it says of the rest, and when it refuses."""

import functools
import http.server
import json
import os
import shutil
import threading

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.scenes.prepare import find_products
from reben_cloud.scenes.sentinel1 import open_scenes
from reben_cloud.sources.archives import ARCHIVES, ArchiveSource
from reben_cloud.sources.folders import FOLDERS, FolderSource
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.survey import modality_named
from reben_cloud.sources.synthetic import synthetic_metadata
from reben_cloud.store import open_store
from tests import official
from tests.commands import told as run
from tests.formats.test_lmdb_records import records_of
from tests.formats.test_lmdb_records import write as write_lmdb

TABLE = official.table_of(4)
ALL = {"s2", "s1", "map"}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    official.write_folders(folder, TABLE)
    return folder


@pytest.fixture
def tree(good, tmp_path):
    return shutil.copytree(good, tmp_path / "in")


def plan_of(folder, tmp_path, **options):
    source, table = open_source(folder)
    return make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch", **options)


def deeper(tree):
    (tree / "BigEarthNet-S2").rename(tree / "x")
    (tree / "BigEarthNet-S2").mkdir()
    (tree / "x").rename(tree / "BigEarthNet-S2" / "BigEarthNet-S2")


def renamed(**names):
    def change(tree):
        for modality, name in names.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / FOLDERS[modality]).rename(tree / name)

    return change


def linked(tree):
    (tree / "BigEarthNet-S2").rename(tree.parent / "elsewhere")
    (tree / "BigEarthNet-S2").symlink_to(tree.parent / "elsewhere", target_is_directory=True)


def all_in_one(tree):
    for name in FOLDERS.values():
        shutil.copytree(tree / name, tree / "all", dirs_exist_ok=True)
        shutil.rmtree(tree / name)


def flat(tree):
    for name in FOLDERS.values():
        for group in list((tree / name).iterdir()):
            for patch in list(group.iterdir()):
                patch.rename(tree / name / patch.name)
            group.rmdir()


FOUND = [
    pytest.param(lambda tree: None, id="official"),
    pytest.param(deeper, id="one level too deep"),
    pytest.param(renamed(s2="a/b/c/BigEarthNet-S2", s1="a/BigEarthNet-S1", map="Reference_Maps"), id="levels"),
    pytest.param(renamed(s2="bigearthnet-s2", s1="BIGEARTHNET-S1", map="reference_maps"), id="case"),
    pytest.param(renamed(s2="BigEarthNet_S2", s1="BigEarthNetS1", map="Reference-Maps"), id="separators"),
    pytest.param(renamed(s2="BigEarthNet-S2-v2.0", s1="BigEarthNet-v2.0-S1", map="Reference_Maps-v2.0"), id="versions"),
    pytest.param(renamed(s2="S2", s1="S1", map="maps"), id="short"),
    pytest.param(renamed(s2="optical", s1="radar", map="truth"), id="other names"),
    pytest.param(renamed(s2="Reference_Maps_", s1="BigEarthNet-S2_", map="S1"), id="misleading names"),
    pytest.param(linked, id="link"),
    pytest.param(all_in_one, id="all in one folder"),
    pytest.param(flat, id="no product folders"),
]  # fmt: skip


@pytest.mark.parametrize("change", FOUND)
def test_the_three_folders_are_found_wherever_and_whatever_called(change, tree, tmp_path):
    change(tree)

    plan = plan_of(tree, tmp_path)

    assert set(plan.modalities) == ALL
    assert plan.table.num_rows == 4
    build(plan)
    assert len(rc.open(tmp_path / "root")) == 4


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *[(n, "s2") for n in ("BigEarthNet-S2", "bigearthnet_s2", "BigEarthNet-S2-v2.0", "BigEarthNet-v2.0-S2", "S2")],
        *[(n, "s2") for n in ("BigEarthNet-S2 (1)", "Sentinel-2", "BEN-S2", "BigEarthNet-v1.0", "reBEN_S2_v2")],
        *[(n, "s1") for n in ("BigEarthNet-S1", "BigEarthNet-S1-v1.0", "s1", "BIGEARTHNET S1 copy")],
        *[(n, "map") for n in ("Reference_Maps", "reference-map", "ReferenceMaps v2", "maps", "BigEarthNet-Ref-Maps")],
        *[(n, None) for n in ("BigEarthNet", "data", "S3", "L2A", "s2-cloudless", "mapserver", "", "lmdb", "v1", "2")],
    ],
)  # fmt: skip
def test_names_stand_for_modalities(name, modality):
    assert (modality_named(name) or (None,))[0] == modality


# -- what is there and not taken -----------------------------------------------------------------------


def lose(modality, name=None, content=None):
    """Take a modality away, and leave something in its place."""

    def change(tree):
        path = tree / FOLDERS[modality]
        shutil.rmtree(path)
        if name is None:
            return
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)

    return change


def archived(tree):
    data = official.pack(official.members("map", TABLE))
    lose("map", ARCHIVES["map"], data)(tree)


def v1(tree):
    lose("s2")(tree)
    patch = tree / "BigEarthNet-v1.0" / "S2A_MSIL2A_20170613T101031_87_48"
    patch.mkdir(parents=True)
    (patch / f"{patch.name}_B02.tif").write_bytes(b"II*\0")


def loose(tree):
    for path in list((tree / "Reference_Maps").rglob("*.tif")):
        (tree / "maps").mkdir(exist_ok=True)
        path.rename(tree / "maps" / path.name)
    shutil.rmtree(tree / "Reference_Maps")


def hollow(tree):
    for path in (tree / "BigEarthNet-S1").rglob("*.tif"):
        path.unlink()


def in_lmdb(tree):
    lose("map")(tree)
    write_lmdb(tree / "lmdb", records_of(TABLE, ("map",)), TABLE)
    (tree / "lmdb" / "metadata.parquet").unlink()


REFUSED = [
    pytest.param(lose("map", "Reference_Maps"), "map", "Reference_Maps .empty", id="empty folder"),
    pytest.param(lose("s1", "BigEarthNet-S1.tar.xz", b""), "s1", "another form than .tar.zst", id="xz"),
    pytest.param(lose("s1", "BigEarthNet-S1.tar.gzab", b""), "s1", "a later part of an archive", id="later part"),
    pytest.param(lose("s2", "BigEarthNet-S2.tar.zst.part", b""), "s2", "part of one", id="half loaded"),
    pytest.param(lose("s2", "x/BigEarthNet-S2.tar.zst.aria2", b""), "s2", "part of one", id="half loaded below"),
    pytest.param(lose("s2", "BigEarthNet-S2-v1.0.tar.gz", b""), "s2", "BigEarthNet v1", id="archive of v1"),
    pytest.param(lose("s2", "BigEarthNet-v1.0.tar.gz", b""), "s2", "BigEarthNet v1", id="first archive"),
    pytest.param(archived, "map", "Reference_Maps.tar.zst .archive", id="archive among folders"),
    pytest.param(v1, "s2", "1 patches of BigEarthNet v1, the first is S2A_MSIL2A_20170613T101031_87_48", id="v1"),
    pytest.param(loose, "map", r"4 TIFFs without a folder for each patch", id="maps in one folder"),
    pytest.param(hollow, "s1", "folders of patches without TIFFs", id="folders without TIFFs"),
    pytest.param(in_lmdb, "map", "lmdb .LMDB", id="maps in an LMDB"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "modality", "message"), REFUSED)
def test_what_looks_like_a_modality_is_named_and_not_left_out_unasked(
    change, modality, message, tree, tmp_path
):
    change(tree)
    rest = ALL - {modality}

    with pytest.raises(SourceError, match=f"has no {modality}, but there is .*{message}.*--modality"):
        plan_of(tree, tmp_path)
    code, _, error = run("build", tree, tmp_path / "root")
    assert code == 1
    assert f"has no {modality}, but there is" in error
    assert not (tmp_path / "root").exists()

    assert set(plan_of(tree, tmp_path, modalities=sorted(rest)).modalities) == rest
    flags = [word for m in sorted(rest) for word in ("--modality", m)]
    code, text, _ = run("build", tree, tmp_path / "root", *flags)
    assert code == 0
    assert text.endswith(f", no {modality}\n")
    with pytest.raises(
        SourceError, match=rf"has no \w+; it has .* cannot be taken together|has no {modality}"
    ):
        open_source(tree, modalities=[modality, *rest])


def test_what_is_nowhere_near_is_said_to_be_missing(tree, tmp_path):
    shutil.rmtree(tree / "Reference_Maps")

    code, text, _ = run("build", tree, tmp_path / "root", "--json")
    said = json.loads(text)

    assert code == 0
    assert said["modalities"] == ["s2", "s1"]
    assert said["published"] == {"s2": 4, "s1": 4}
    assert said["absent"] == ["map"]
    url = open_store(tmp_path / "root").url
    assert run("build", tree, tmp_path / "root")[1] == (
        f"already there, nothing to do: 4 patches at {url}: s2 4, s1 4, no map\n"
    )


def test_a_modality_that_is_asked_for_must_be_there(tree, tmp_path):
    shutil.rmtree(tree / "Reference_Maps")

    code, _, error = run("build", tree, tmp_path / "root", "--modality", "s2", "--modality", "map")

    assert code == 1
    assert f"{tree} has no map; it has s1, s2" in error
    with pytest.raises(ValueError, match="unknown modality 's3'"):
        open_source(tree, modalities=["s3"])


def test_one_folder_or_archive_of_several_is_refused_unless_it_is_meant(tree, tmp_path):
    with pytest.raises(SourceError, match=r"has no s1, but there is \S+BigEarthNet-S1 .folder of patches"):
        plan_of(tree / "BigEarthNet-S2", tmp_path)
    assert plan_of(tree / "BigEarthNet-S2", tmp_path, modalities=["s2"]).modalities == ("s2",)

    official.write_archives(tmp_path / "zst", TABLE, ["s1", "map"])
    lone = tmp_path / "zst" / ARCHIVES["map"]
    with pytest.raises(SourceError, match=r"has no s1, but there is \S+BigEarthNet-S1.tar.zst .archive"):
        plan_of(lone, tmp_path)
    assert plan_of(lone, tmp_path, modalities=["map"]).modalities == ("map",)
    (tmp_path / "zst" / ARCHIVES["s1"]).unlink()
    assert plan_of(lone, tmp_path).modalities == ("map",)


def test_the_form_that_has_most_is_taken_and_the_rest_is_said(tree, tmp_path, caplog):
    official.write_archives(tree, TABLE, ["map"])

    source, _ = open_source(tree)

    assert isinstance(source, FolderSource)
    assert set(source.names()) == ALL
    assert f"not taken: {tree}/Reference_Maps.tar.zst (archive)" in caplog.text
    assert isinstance(open_source(tree / ARCHIVES["map"])[0], ArchiveSource)


def test_a_modality_in_two_places_is_ambiguous(tree, tmp_path):
    shutil.copytree(tree / "BigEarthNet-S2", tree / "old" / "BigEarthNet-S2")

    with pytest.raises(
        SourceError, match=r"s2 is there twice, in \S+BigEarthNet-S2 and in \S+old/BigEarthNet-S2"
    ):
        open_source(tree)
    assert set(open_source(tree, modalities=["s1", "map"])[0].names()) == {"s1", "map"}


def test_archives_may_be_spelled_otherwise(tmp_path):
    official.write_archives(tmp_path / "in", TABLE)
    (tmp_path / "in" / ARCHIVES["s2"]).rename(tmp_path / "in" / "bigearthnet_s2-v2.0.tar.zst")
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "in" / ARCHIVES["map"]).rename(tmp_path / "in" / "sub" / "Reference Maps.TZST")

    plan = plan_of(tmp_path / "in", tmp_path)
    build(plan)

    assert set(plan.modalities) == ALL
    assert len(rc.open(tmp_path / "root")) == 4


@pytest.fixture
def at_a_url(tmp_path):
    """Puts these archives, and the metadata, where no folder is: a store that says what it has."""

    def put(*modalities):
        official.write_archives(tmp_path / "zst", TABLE, modalities)
        store = open_store(f"memory://{tmp_path.name}/data")
        for file in (tmp_path / "zst").iterdir():
            store.put(file.name, file.read_bytes())
        return store

    return put


NEAR_AT_A_URL = [
    pytest.param("bigearthnet_s1.tar.zst", r"it must be called BigEarthNet-S1\.tar\.zst", id="misspelled"),
    pytest.param("BigEarthNet-S1.tar.xz", r"another form than \.tar\.zst", id="another form"),
    pytest.param("BigEarthNet-S1.tar.zst.part", "a part of one", id="half downloaded"),
    pytest.param("BigEarthNet-S1-v1.0.tar.gz", "BigEarthNet v1", id="version 1"),
    pytest.param("BigEarthNet-S1/S1A_scene/a.tif", "must lie on a disk", id="unpacked"),
]


@pytest.mark.parametrize(("path", "why"), NEAR_AT_A_URL)
def test_what_looks_like_an_archive_at_a_url_is_named_and_not_left_out_unasked(path, why, at_a_url, tmp_path):
    store = at_a_url("s2", "map")
    store.put(path, b"never read")

    with pytest.raises(
        SourceError, match=rf"has no s1, but there is \S+{path.split('/')[0]} .*{why}.*--modality"
    ):
        plan_of(store.url, tmp_path)
    with pytest.raises(SourceError, match=rf"has no s1; it has s2, map; .*{why}.* cannot be taken together"):
        open_source(store.url, modalities=["s1", "s2"])
    assert set(open_source(store.url, modalities=["s2", "map"])[0].names()) == {"s2", "map"}
    with pytest.raises(
        SourceError, match=rf"has no s2 and no s1; it has map; .*S2.* together with it; .*{why}"
    ):
        open_source(f"{store.url}/{ARCHIVES['map']}", modalities=["s2", "s1"])


def test_other_things_beside_archives_at_a_url_do_not_matter(at_a_url, tmp_path):
    store = at_a_url("s2", "map")
    for path in ("README.md", "notes.tar.zst", "S3.tar.zst", "._BigEarthNet-S1.tar.zst", "sub/x", "s1/x"):
        store.put(path, b"never read")

    assert set(plan_of(store.url, tmp_path).modalities) == {"s2", "map"}


class _ReadOnly(http.server.SimpleHTTPRequestHandler):
    """An open bucket whose objects anybody may read and nobody may list."""

    def send_head(self):
        if "list-type" in self.path:
            self.send_error(403)
            return None
        return super().send_head()

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()


def test_archives_are_taken_from_where_nobody_may_list(tmp_path, caplog):
    official.write_archives(tmp_path / "bucket", TABLE, ["s2"])
    handler = functools.partial(_ReadOnly, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        options = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "anon": True}

        source, _ = open_source("s3://bucket", storage_options=options)
        server.shutdown()

    assert set(source.names()) == {"s2"}
    assert "what else is there is not known" in caplog.text


def test_a_url_with_misspelled_archives_alone_says_what_they_must_be_called(at_a_url):
    store = at_a_url()
    store.put("bigearthnet_s2.tar.zst", b"never read")

    called = r"called BigEarthNet-S2\.tar\.zst"
    with pytest.raises(
        SourceError, match=rf"no archive there can be taken; there is \S+bigearthnet_s2.tar.zst .*{called}"
    ):
        open_source(store.url)
    with pytest.raises(SourceError, match=r"under this name; call it BigEarthNet-S2\.tar\.zst"):
        open_source(f"{store.url}/bigearthnet_s2.tar.zst")


def test_a_root_and_an_export_below_their_source_are_not_taken_for_it(tree, tmp_path):
    build(make_plan(*open_source(tree), open_store(tree / "root")))
    rc.open(tree / "root").search().export_lmdb(tree / "export")

    assert isinstance(open_source(tree)[0], FolderSource)


def test_rows_of_the_metadata_without_a_patch_are_counted(tree, tmp_path):
    whole = synthetic_metadata(4553)
    more = whole.filter(pc.invert(pc.is_in(whole["patch_id"], TABLE["patch_id"].combine_chunks()))).slice(
        0, 5
    )
    pq.write_table(pa.concat_tables([TABLE, more]), tree / "metadata.parquet")
    lacking = sorted(more["patch_id"].to_pylist())

    code, text, error = run("build", tree, tmp_path / "root", "--json")

    assert code == 0
    assert json.loads(text)["metadata_rows_without_patch"] == len(lacking)
    assert f"{len(lacking)} of {len(lacking) + 4} rows of the metadata have no patch in the source" in error
    assert f"the first is {lacking[0]}" in error


def test_files_that_are_no_patches_are_counted(tree, tmp_path, caplog):
    product = next((tree / "BigEarthNet-S2").iterdir())
    (product / "notes.txt").write_text("x")
    patch = next(path for path in product.iterdir() if path.is_dir())
    shutil.copytree(patch, product / f"{patch.name} (1)"[:60].replace("_", "-"))

    plan_of(tree, tmp_path)

    assert "2 files and folders there that are no folders of s2 patches are left out" in caplog.text


# -- clutter -------------------------------------------------------------------------------------------

CLUTTER = [
    ".DS_Store",
    "._x",
    "__MACOSX",
    "Thumbs.db",
    "desktop.ini",
    ".ipynb_checkpoints",
    "@eaDir",
    ".nfs0000a1",
]
CLUTTER += ["lost+found", "THUMBS.DB", "Desktop.ini", ".Trash-1000", "$RECYCLE.BIN", ".snapshot", "#recycle"]


@pytest.mark.parametrize("name", CLUTTER)
def test_clutter_is_known(name):
    assert is_clutter(name)


@pytest.mark.parametrize(
    "name", ["BigEarthNet-S2", "a.SAFE", "data.mdb", "metadata.parquet", "x_B02.tif", "thumbs"]
)
def test_data_is_not_clutter(name):
    assert not is_clutter(name)


def litter(folder):
    """Clutter in every folder, as files and as folders with copies of what is there."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        files = [path for path in place.iterdir() if path.is_file()]
        for path in files:
            (place / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (place / ".DS_Store").write_bytes(b"\0")
        (place / "Thumbs.db").write_bytes(b"\0")
        (place / "desktop.ini").write_bytes(b"\0")
        for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found"):
            (place / name).mkdir(exist_ok=True)
            for path in files:
                shutil.copy(path, place / name)


def test_clutter_in_folders_does_not_matter(tree, tmp_path, caplog):
    litter(tree)
    shutil.copytree(tree / "BigEarthNet-S1", tree / "__MACOSX" / "BigEarthNet-S1")

    plan = plan_of(tree, tmp_path)

    assert caplog.text == ""
    assert set(plan.modalities) == ALL
    build(plan)


def test_clutter_in_archives_does_not_matter(tmp_path):
    official.write_archives(tmp_path / "in", TABLE)
    for modality in ALL:
        files = []
        for path, data in official.members(modality, TABLE):
            folder, name = os.path.split(path)
            files += [(f"{folder}/._{name}", b"x"), (path, data), (f"{folder}/.DS_Store", b"x")]
            files += [(f"__MACOSX/{folder}/._{name}", b"x"), (f"{folder}/@eaDir/{name}", data)]
        files += [(f"{FOLDERS[modality]}/Thumbs.db", bytes(3 << 20))]
        (tmp_path / "in" / ARCHIVES[modality]).write_bytes(official.pack(files))

    build(plan_of(tmp_path / "in", tmp_path))

    assert len(rc.open(tmp_path / "root")) == 4


def test_clutter_beside_an_lmdb_does_not_matter(tmp_path):
    folder = write_lmdb(tmp_path / "in", records_of(TABLE), TABLE)
    for name in ("__MACOSX", ".snapshot", "@eaDir", "lost+found"):
        shutil.copytree(folder / "lmdb", folder / name / "lmdb")
    litter(folder)

    assert plan_of(folder, tmp_path).table.num_rows == 4
    assert len(rc.open(folder)) == 4


def test_clutter_among_scenes_does_not_matter(tmp_path):
    (tmp_path / "X.SAFE").mkdir()
    (tmp_path / "._X.SAFE").write_bytes(b"x")
    assert find_products([tmp_path]) == [tmp_path / "X.SAFE"]

    (tmp_path / "s1" / "__MACOSX").mkdir(parents=True)
    (tmp_path / "s1" / "._scene_VV.tif").write_bytes(b"x")
    (tmp_path / "s1" / "__MACOSX" / "scene_VV.tif").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="no Sentinel-1 scenes"):
        open_scenes([tmp_path / "s1"])
