"""Patches by name: lists, files of several forms, other names of a patch, and the order that is kept."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.publish import publish_metadata
from reben_cloud.errors import NotFoundError
from reben_cloud.search import known_ids, read_ids
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.roots import synthetic_root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    synthetic_root(folder, 40)
    return rc.open(folder)


@pytest.fixture(scope="module")
def frame(dataset):
    return dataset.search().to_pandas()


@given(data=st.data())
def test_the_order_of_ids_is_kept_on_request(dataset, data):
    known = dataset.selection.patch_ids
    asked = data.draw(st.lists(st.sampled_from([*known, "gone", "lost"])))
    split = data.draw(st.sampled_from([None, "train", ["test", "validation"]]))

    kept = dataset.search(ids=asked, ids_order=True, missing_ok=True, split=split)
    usual = dataset.search(ids=asked, missing_ok=True, split=split)

    fitting = set(dataset.search(split=split).patch_ids)
    assert kept.patch_ids == [name for name in dict.fromkeys(asked) if name in fitting]
    assert usual.patch_ids == [name for name in known if name in fitting & set(asked)]


def test_a_loader_that_does_not_shuffle_delivers_the_order_of_ids(dataset):
    asked = dataset.search(sortby="-id").patch_ids[3:30:2]
    found = dataset.search(ids=asked, ids_order=True)

    index = [i for batch in RawLoader(found, batch_size=4, shuffle=False) for i in batch["index"].tolist()]

    assert [found.patch_ids[i] for i in index] == asked
    # A shuffled epoch has an order of its own, whatever order the patches are listed in; `index` names each.
    orders = [
        [one.patch_ids[i] for batch in RawLoader(one, batch_size=4, seed=1) for i in batch["index"].tolist()]
        for one in (found, dataset.search(ids=asked))
    ]
    assert orders[0] == orders[1] != asked


@pytest.mark.parametrize("column", ["s1_name", "s2v1_name"])
def test_other_names_of_a_patch_stand_for_it(dataset, frame, column):
    names = frame[column].tolist()[10:2:-1]

    found = dataset.search(ids=names, ids_order=True)

    assert found.to_pandas()[column].tolist() == names
    patch_id, name = frame.patch_id[0], frame[column][0]
    assert dataset.search(ids=[name, patch_id, name]).patch_ids == [patch_id]
    assert known_ids(dataset, [name, patch_id, "gone"]) == [patch_id]
    assert str(dataset.open_patch(name).patch_id.values) == patch_id


def test_a_name_of_several_patches_is_refused(dataset, tmp_path):
    official = dataset.search().official()
    names = official.column("s2v1_name").to_pylist()
    names[1] = names[0]
    place = official.schema.get_field_index("s2v1_name")
    official = official.set_column(place, "s2v1_name", pa.array(names))
    publish_metadata(describe(official), REBEN, open_store(tmp_path), given=official.column_names)
    twice = rc.open(tmp_path)

    with pytest.raises(ValueError, match=r"names several patches of .*s2v1_name.*give their patch ids"):
        twice.search(ids=names[0])
    assert len(twice.search(ids=names[2])) == 1


def test_names_of_no_patch_are_counted(dataset, frame):
    names = [frame.s1_name[0], *(f"gone {n}" for n in range(7))]

    with pytest.raises(NotFoundError, match=r"no patch 'gone 0', 'gone 1', 'gone 2' and 4 more; search"):
        dataset.search(ids=names)
    assert dataset.search(ids=names, missing_ok=True).patch_ids == [frame.patch_id[0]]


def forms(folder, frame):
    """The same names in files of every form."""
    names = frame.patch_id.tolist()
    many = frame.loc[frame.index.repeat(3), ["s1_name", "patch_id", "country"]]
    texts = {
        "lines": "\n".join(names),
        "lines of Windows": "\r\n".join(["", *names, "", ""]),
        "lines with a mark": "\ufeff" + "\n".join(f" {name} " for name in names),
        "one column": frame.patch_id.to_csv(index=False),
        "many columns": many.to_csv(),
        "STAC's column": frame.rename(columns={"patch_id": "id"})[["country", "id"]].to_csv(index=False),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    many.to_parquet(folder / "parquet")
    dictionaries = pa.table({"patch_id": pa.array([*names, None]).dictionary_encode()})
    pq.write_table(dictionaries, folder / "parquet of dictionaries.csv")
    return [*texts, "parquet", "parquet of dictionaries.csv"]


def test_files_of_every_form_list_the_same_names(tmp_path, dataset, frame):
    chosen = frame.iloc[[7, 2, 30, 4]]

    for name in forms(tmp_path, chosen):
        assert read_ids(tmp_path / name) == chosen.patch_id.tolist(), name
        found = dataset.search(ids=tmp_path / name, ids_order=True)
        assert found.patch_ids == chosen.patch_id.tolist(), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "lists no id; write one per line", id="empty"),
        pytest.param(b"patch_id\n", "lists no id", id="a header alone"),
        pytest.param(b"name,place\na,b\n", r"no column patch_id .*it has name, place", id="columns"),
        pytest.param(b"\xff\xfe\x00", "cannot be read: .*utf-8", id="no text"),
        pytest.param(b"PAR1PAR1", "cannot be read", id="broken parquet"),
    ],
)
def test_a_file_that_lists_no_ids_is_refused(tmp_path, dataset, content, message):
    (tmp_path / "ids").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        dataset.search(ids=tmp_path / "ids")


def test_a_parquet_of_other_columns_is_refused(tmp_path):
    pd.DataFrame({"ID": [1, 2], "label": ["a", "b"]}).to_parquet(tmp_path / "ids")

    with pytest.raises(ValueError, match=r"no column patch_id \(or id, .*it has ID, label"):
        read_ids(tmp_path / "ids")
