"""LMDBs whose records are not rico-hdl's: told at opening and at building, by record and by what is wrong."""

import logging

import lmdb as py_lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.cli import app
from reben_cloud.errors import InvalidPatchError, RebenError, SourceError
from reben_cloud.root import metadata
from reben_cloud.root.patch import key_of
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests import official

NUM_PATCHES = 6
TABLE = official.table_of(NUM_PATCHES)
INFOS = list(metadata.patch_infos(TABLE))
MODALITIES = ("s2", "s1", "map")


def records_of(table=TABLE, modalities=MODALITIES):
    """Key -> payload."""
    source, found = SyntheticSource(table.num_rows), {}
    for info in metadata.patch_infos(table):
        for modality, payload in source.read(info, modalities).payloads.items():
            found[key_of(REBEN.modality(modality), info).encode()] = payload
    return found


RECORDS = records_of()


def write(folder, records, table=TABLE):
    """An LMDB of these records, with its metadata beside it."""
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "metadata.parquet")
    with py_lmdb.open(str(folder / "lmdb"), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            txn.put(key, value)
    return folder


def changed(modality, number, change):
    """The records, one of them changed; and its key."""
    key = key_of(REBEN.modality(modality), INFOS[number]).encode()
    return {**RECORDS, key: change(RECORDS[key])}, key.decode()


def tensors(change):
    """A record of other tensors."""
    return lambda payload: save(change(load(payload)))


def int16(t):
    return {k: v.astype(np.int16) for k, v in t.items()}


def without(*names):
    return lambda t: {k: v for k, v in t.items() if k not in names}


OTHER = [
    pytest.param("s2", tensors(int16), "B01 is I16, must be U16; B02 is I16", id="int16"),
    pytest.param(
        "s2",
        tensors(lambda t: {k: v.astype(np.float32) for k, v in t.items()}),
        "B01 is F32, must be U16.*differences more",
        id="float32",
    ),
    pytest.param("s1", tensors(lambda t: {k: v.astype(np.float64) for k, v in t.items()}), "VH is F64", id="float64"),
    pytest.param("s1", tensors(lambda t: {k: v.astype(np.float16) for k, v in t.items()}), "VV is F16", id="float16"),
    pytest.param("map", tensors(int16), "Data is I16, must be U16", id="int16 map"),
    pytest.param("s2", tensors(without("B09")), "lacks B09", id="a band missing"),
    pytest.param("s1", tensors(without("VH")), "lacks VH", id="a polarization missing"),
    pytest.param(
        "s2",
        tensors(lambda t: {**t, "B10": np.zeros((20, 20), np.uint16)}),
        "has B10, which is not a tensor of s2",
        id="a band more",
    ),
    pytest.param(
        "s2",
        tensors(lambda t: {**t, "B01": np.zeros((120, 120), np.uint16)}),
        r"B01 has shape \[120, 120\], must be \[20, 20\]",
        id="another shape",
    ),
    pytest.param(
        "s2", tensors(lambda t: {**t, "B01": t["B01"].reshape(1, 20, 20)}), r"shape \[1, 20, 20\]", id="another rank"
    ),
    pytest.param(
        "map", tensors(lambda t: {"reference_map": t["Data"]}), "lacks Data; has reference_map", id="another name"
    ),
    pytest.param("s2", lambda p: save(load(p), metadata={"made": "by me"}), "has __metadata__", id="metadata"),
    pytest.param("s2", lambda p: p[:-100], "160,732 bytes where its header says 160,832", id="truncated"),
    pytest.param("s2", lambda p: p + b"\0" * 8, "160,840 bytes where its header says 160,832", id="longer"),
    pytest.param("s2", lambda p: p[:40], "ends within its header", id="cut in its header"),
    pytest.param("s2", lambda p: b"", "not a safetensors record", id="empty"),
    pytest.param("s2", lambda p: b"\x80\x04pickle" * 900, "not a safetensors record", id="a pickle"),
    pytest.param("s2", lambda p: p[:8] + b"[1]" + p[11:], "not a safetensors record", id="damaged header"),
    pytest.param("s2", lambda p: RECORDS[INFOS[0].s1_name.encode()], "lacks B01", id="another modality"),
]  # fmt: skip


@pytest.mark.parametrize("number", [0, 3, NUM_PATCHES - 1])
@pytest.mark.parametrize(("modality", "change", "message"), OTHER)
def test_a_record_of_another_form_is_named_when_opened_and_when_built(
    modality, change, message, number, tmp_path
):
    records, key = changed(modality, number, change)
    folder = write(tmp_path / "in", records)

    with pytest.raises(InvalidPatchError, match=f"record '{key}'.*{message}"):
        rc.open(folder)
    source, table = open_source(folder)
    with pytest.raises(InvalidPatchError, match=f"record '{key}'.*{message}"):
        make_plan(source, table, open_store(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_a_record_that_no_sample_looked_at_is_named_by_the_build_and_by_the_loader(tmp_path, monkeypatch):
    monkeypatch.setattr("reben_cloud.sources.lmdb._CHECKED_RECORDS", 2)
    records, key = changed("s2", 1, tensors(int16))
    folder = write(tmp_path / "in", records)

    source, table = open_source(folder)
    with pytest.raises(InvalidPatchError, match=f"record '{key}'.*B01 is I16"):
        build(make_plan(source, table, open_store(tmp_path / "root")))
    loader = RawLoader(rc.open(folder).search(), batch_size=2)
    with pytest.raises(InvalidPatchError, match=f"record '{key}'.*B01 is I16"):
        list(loader)


def test_other_records_do_not_matter_to_who_does_not_want_them(tmp_path):
    records, _ = changed("map", 2, tensors(int16))
    folder = write(tmp_path / "in", records)

    build(make_plan(*open_source(folder, modalities=["s2", "s1"]), open_store(tmp_path / "root")))

    assert rc.open(tmp_path / "root").modalities == ("s2", "s1")


@pytest.mark.parametrize(
    "key", [b"__len__", b"__keys__", b"length", b"metadata", b"0000001", b"\xff\xfe\x00", b"S2", b"S2_mean", b"zzz"]
)  # fmt: skip
def test_keys_that_are_not_records_are_left_out_and_counted(key, tmp_path, caplog):
    folder = write(tmp_path / "in", {**RECORDS, key: b"12", key + b"x": b"13"})

    with caplog.at_level(logging.WARNING):
        build(make_plan(*open_source(folder), open_store(tmp_path / "root")))

    assert "2 keys that are not records of BigEarthNet v2 are left out" in caplog.text
    assert len(rc.open(tmp_path / "root")) == NUM_PATCHES
    assert len(rc.open(folder)) == NUM_PATCHES


def test_the_command_says_which_record_it_is(tmp_path):
    records, key = changed("s2", 1, tensors(int16))
    folder = write(tmp_path / "in", {**records, b"__len__": b"18"})

    result = CliRunner().invoke(app, ["build", str(folder), str(tmp_path / "root")])

    assert isinstance(result.exception, RebenError)
    assert f"record '{key}'" in str(result.exception)


def test_records_of_v1_are_told(tmp_path, shared):
    (folder,) = (shared / "data" / "bigearthnet_v1_example").glob("BigEarthNet-S2-Example")
    name = min(path.name for path in folder.iterdir())
    records = {**RECORDS, name.encode(): RECORDS[INFOS[0].patch_id.encode()]}

    with pytest.raises(SourceError, match=f"the record '{name}' is named as BigEarthNet v1"):
        rc.open(write(tmp_path / "in", records))


def test_named_databases_are_told(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(TABLE, folder / "metadata.parquet")
    with py_lmdb.open(str(folder / "lmdb"), map_size=1 << 28, max_dbs=2) as env:
        for name in (b"s1", b"s2"):
            database = env.open_db(name)
            with env.begin(write=True, db=database) as txn:
                for key, value in RECORDS.items():
                    txn.put(key, value)

    with pytest.raises(
        SourceError, match=r"without records of BigEarthNet v2; its keys are like 's1' \(2 keys\)"
    ):
        rc.open(folder)


def test_a_patch_that_lacks_a_record_is_named(tmp_path):
    records = {k: v for k, v in RECORDS.items() if k.decode() != INFOS[2].s1_name}
    folder = write(tmp_path / "in", records)

    with pytest.raises(SourceError, match=rf"1 lacks s1.*{INFOS[2].patch_id}"):
        rc.open(folder)


def test_a_record_without_metadata_is_named(tmp_path, caplog):
    folder = write(tmp_path / "in", RECORDS, pa.Table.from_batches(TABLE.slice(1).to_batches()))

    dataset = rc.open(folder)

    assert len(dataset) == len(INFOS) - 1
    assert f"no row of the metadata, and not taken; the first is {INFOS[0].patch_id}" in caplog.text
