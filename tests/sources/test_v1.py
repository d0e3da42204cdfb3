"""The v1 lists, against the v2 metadata that were made from them."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from reben_cloud.bigearthnet import v1
from reben_cloud.bigearthnet.v1 import V1Patch, read_v1
from reben_cloud.errors import SourceError

PRODUCTS = [
    # Its v1 names lack the leading zero of the hour; snow and clouds; a product with neither.
    pytest.param("S2B_MSIL2A_20170924T093019_N9999_R136_T35VPK", id="odd names"),
    pytest.param("S2A_MSIL2A_20180228T101021_N9999_R022_T34WFS", id="snow"),
    pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", id="clouds"),
]


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
def test_names_flags_and_s1_of_every_row_of_a_real_product(shared, product):
    folder = shared / "data" / "bigearthnet_pipeline"
    rows = []
    for name in ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow"):
        table = pq.read_table(folder / f"{name}.parquet")
        rows += table.filter(pc.starts_with(table["patch_id"], product)).to_pylist()

    found = read_v1(folder, product)

    assert rows
    assert len(found) >= len(rows)
    for row in rows:
        x, y = int(row["patch_id"][-5:-3]), int(row["patch_id"][-2:])
        assert found[x, y] == V1Patch(
            name=row["s2v1_name"],
            s1_name=row["s1_name"],
            snow=row["contains_seasonal_snow"],
            cloud=row["contains_cloud_or_shadow"],
        )


def write_lists(
    folder, links="S2A_MSIL2A_20170613T101031_3_4,S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_x.SAFE,u\n"
):
    (folder / "tile_names_and_links.csv").write_text(links)
    (folder / "patches_with_seasonal_snow.csv").write_text("S2A_MSIL2A_20170613T101031_3_4\n")
    (folder / "patches_with_cloud_and_shadow.csv").write_text("other_1_1\n")


def test_small_lists_and_the_s1_mapping(tmp_path):
    write_lists(tmp_path)
    (tmp_path / "s1s2_mapping.csv").write_text("S2A_MSIL2A_20170613T101031_3_4,S1A_x_33UUP_3_4\n")

    found = read_v1(tmp_path, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP")

    assert found == {
        (3, 4): V1Patch(
            name="S2A_MSIL2A_20170613T101031_3_4", s1_name="S1A_x_33UUP_3_4", snow=True, cloud=False
        )
    }
    assert read_v1(tmp_path, "S2B_MSIL2A_20170613T101031_N9999_R022_T33UUP") == {}


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tile_names_and_links\.csv"):
        read_v1(tmp_path, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP")


def test_a_list_of_another_shape_is_refused(tmp_path):
    write_lists(tmp_path, links="a,b\n")

    with pytest.raises(SourceError, match=r"tile_names_and_links\.csv: not 3 columns of names"):
        read_v1(tmp_path, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP")


def test_lists_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    write_lists(tmp_path)
    read = []
    original = v1.pyarrow.csv.read_csv
    monkeypatch.setattr(
        v1.pyarrow.csv, "read_csv", lambda *args, **kw: read.append(1) or original(*args, **kw)
    )

    first = [read_v1(tmp_path, product) for _ in range(3)]
    num_read = len(read)
    (tmp_path / "patches_with_cloud_and_shadow.csv").write_text("S2A_MSIL2A_20170613T101031_3_4\n")
    changed = read_v1(tmp_path, product)

    assert num_read == 3
    assert first == [first[0]] * 3
    assert (first[0][3, 4].cloud, changed[3, 4].cloud) == (False, True)
