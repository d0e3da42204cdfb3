"""Archives: every official one, wherever it lies, and what each broken or hostile one is told."""

import dataclasses
import functools
import io
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
import zstandard

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import InvalidPatchError, SourceError, StorageError
from reben_cloud.root import metadata
from reben_cloud.sources.archives import ARCHIVES, ArchiveSource
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official
from tests.webserver import serve

NUM_PATCHES = 24


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    official.write_archives(folder, official.table_of(NUM_PATCHES))
    return folder


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The root that the same patches give without archives."""
    url = tmp_path_factory.mktemp("truth") / "root"
    table = official.table_of(NUM_PATCHES)
    build(make_plan(SyntheticSource(NUM_PATCHES), table, open_store(url)))
    return objects(url)


def objects(root):
    """Path -> bytes of all but the journal, and of the documents that name the source."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] in ("zarr", "shards", "patches.parquet")
    }


def payloads_of(source, modality):
    return dict(source.iter_payloads(modality, wanted=lambda name: True))


def archive(tmp_path, data, modality="s2"):
    """A source of one archive with these bytes."""
    (tmp_path / ARCHIVES[modality]).write_bytes(data)
    return ArchiveSource({modality: (open_store(tmp_path), ARCHIVES[modality])})


# -- good archives -------------------------------------------------------------------------------------


def test_archives_end_in_the_same_root_as_their_patches(archives, truth, tmp_path):
    source, table = open_source(archives)
    plan = make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch")

    build(plan)

    assert objects(tmp_path / "root") == truth
    assert verify(rc.open(tmp_path / "root"), deep=True, against=source).problems == ()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_plan_states_the_scratch_space(archives, tmp_path):
    source, table = open_source(archives)
    plan = make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch")

    estimate = plan.estimate()

    assert estimate.scratch_bytes == NUM_PATCHES * sum(
        size + 8 for size in (m.payload_bytes for m in REBEN.modalities)
    )
    assert estimate.num_tasks == 3 + len(plan.tasks)
    assert f"in {tmp_path}/scratch" in estimate.to_text()
    assert not (tmp_path / "scratch").exists()


def test_too_little_scratch_space_is_said_before_anything_is_read(archives, tmp_path):
    source, table = open_source(archives)
    plan = make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    large = dataclasses.replace(plan.spool, num_rows=len(plan.table) * (1 + 2 * free // plan.spool.nbytes))

    with pytest.raises(StorageError, match=r"scratch folder needs [\d.]+ \wB more .*--scratch"):
        large.prepare()


def test_archives_without_scratch_are_refused(archives, tmp_path):
    source, table = open_source(archives)
    with pytest.raises(SourceError, match=r"need a scratch folder \(--scratch\)"):
        make_plan(source, table, open_store(tmp_path / "root"))


@pytest.fixture
def web(archives):
    with serve(archives) as url:
        yield url


def test_archives_behind_http_are_streamed(web, truth, tmp_path):
    source, table = open_source(web)

    build(make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch"))

    assert objects(tmp_path / "root") == truth


@pytest.mark.s3
def test_archives_on_s3_are_streamed_through_dropped_connections(
    archives, s3_bucket, fault_proxy, truth, tmp_path
):
    store = open_store(s3_bucket.url, s3_bucket.storage_options)
    for path in archives.iterdir():
        store.put(path.name, path.read_bytes())
    fault_proxy.add("GET /", "reset-mid", times=2)
    fault_proxy.add("GET /", "503", times=2)

    behind = s3_bucket.through(fault_proxy.endpoint)
    source, table = open_source(s3_bucket.url, storage_options=behind.storage_options)
    build(make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch"))

    assert fault_proxy.num_faults() >= 4
    assert objects(tmp_path / "root") == truth


def test_a_second_run_decodes_only_what_the_first_did_not_keep(archives, truth, tmp_path):
    source, table = open_source(archives)
    plan = make_plan(source, table, open_store(tmp_path / "root"), scratch=tmp_path / "scratch")
    plan.spool.prepare()
    infos = list(metadata.patch_infos(plan.table))
    for row in range(10):
        for modality, payload in SyntheticSource(1).read(infos[row], plan.modalities).payloads.items():
            plan.spool.write(modality, row, payload)
    # One record that a power cut left torn: its checksum does not fit.
    with open(f"{plan.spool.folder}/s2.records", "r+b") as file:
        file.seek(3 * REBEN.modality("s2").payload_bytes + 5000)
        file.write(b"torn")

    with pytest.raises(
        SourceError, match=r"not whole in the scratch folder; run again with the same --scratch"
    ):
        build(plan)
    assert plan.spool.held("s2").sum() == NUM_PATCHES - 1
    build(plan)

    assert objects(tmp_path / "root") == truth


def test_memory_does_not_grow_with_the_archive(tmp_path):
    def peak(num_patches):
        source = archive(tmp_path, official.pack(official.members("s2", official.table_of(num_patches))))
        tracemalloc.start()
        for _ in source.iter_payloads("s2", wanted=lambda name: True):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    assert peak(40) < peak(8) + 1_000_000


# -- other archives ------------------------------------------------------------------------------------


def s2_members(count=2):
    return list(official.members("s2", official.table_of(24)))[: 12 * count]


def test_folders_long_names_and_pax_records_are_understood(tmp_path):
    folder = tarfile.TarInfo("BigEarthNet-S2")
    folder.type = tarfile.DIRTYPE
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(folder)
        for path, data in s2_members():
            info = tarfile.TarInfo("./" + path)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
    # Two zstd frames, as pzstd and `cat a.zst b.zst` make them.
    raw, zstd = out.getvalue(), zstandard.ZstdCompressor()
    source = archive(tmp_path, zstd.compress(raw[:70_000]) + zstd.compress(raw[70_000:]))

    assert payloads_of(source, "s2") == payloads_of(archive(tmp_path, official.pack(s2_members())), "s2")


def link(kind, target="elsewhere"):
    info = tarfile.TarInfo(s2_members(1)[0][0])
    info.type, info.linkname = kind, target
    return info


def renamed(name):
    return [(name, s2_members(1)[0][1])]


def shuffled_bands():
    files = s2_members(2)
    return files[:6] + files[12:] + files[6:12]


def with_pixels(change):
    files = s2_members(1)
    return [(files[0][0], change(files[0][1])), *files[1:]]


def float_tiff(_):
    table = official.table_of(24)
    footprint = rc.grid.footprint(table["patch_id"][0].as_py())
    return official.tiff(np.ones((20, 20), np.float32), footprint)


def truncated(data, share=0.6):
    return data[: int(len(data) * share)]


def recompressed_cut(files):
    """A whole zstd frame of a tar that ends too early."""
    raw = zstandard.ZstdDecompressor().decompress(official.pack(files), max_output_size=1 << 26)
    return zstandard.ZstdCompressor().compress(truncated(raw))


def one_behind_the_other(zeros):
    """Two sound archives, as `cat` puts them together."""
    files = s2_members(2)
    return official.pack(files[:12]) + zstandard.compress(bytes(zeros)) + official.pack(files[12:])


BROKEN = [
    pytest.param(
        lambda: one_behind_the_other(0), r"goes on behind its end, .*_B8A.tif; .*cat", id="two archives"
    ),
    pytest.param(lambda: one_behind_the_other(5 << 20), "goes on behind its end", id="two far apart"),
    pytest.param(
        lambda: b"PK\x03\x04 a zip file", "not zstd or gzip, or damaged; compare its md5", id="not zstd"
    ),
    pytest.param(lambda: zstandard.compress(b"x" * 5000), "not a tar archive", id="not tar"),
    pytest.param(
        lambda: truncated(official.pack(s2_members())), "cut short (after|within)", id="truncated zstd"
    ),
    pytest.param(
        lambda: recompressed_cut(s2_members()), "cut short within BigEarthNet-S2/", id="truncated tar"
    ),
    pytest.param(lambda: b"", "cut short after its first block", id="empty"),
    pytest.param(lambda: official.pack([]), "holds no files", id="no files"),
    pytest.param(
        lambda: official.pack(renamed("BigEarthNet-S2/../../etc/passwd")),
        r"the member 'BigEarthNet-S2/../../etc/passwd' climbs out of the archive",
        id="climbing path",
    ),
    pytest.param(
        lambda: official.pack(renamed("/etc/passwd")), "'/etc/passwd' climbs out", id="absolute path"
    ),
    pytest.param(
        lambda: official.pack([(link(tarfile.SYMTYPE), b"")]), r"_B01.tif' is a symbolic link", id="symlink"
    ),
    pytest.param(
        lambda: official.pack([(link(tarfile.LNKTYPE), b"")]), r"_B01.tif' is a hard link", id="hard link"
    ),
    pytest.param(
        lambda: official.pack([(link(tarfile.CHRTYPE), b"")]), r"_B01.tif' is a device", id="device"
    ),
    pytest.param(lambda: official.pack([(link(tarfile.FIFOTYPE), b"")]), "is no plain file", id="fifo"),
    pytest.param(
        lambda: official.pack(renamed("README.txt")), "'README.txt' is none of BigEarthNet-S2", id="foreign"
    ),
    pytest.param(
        lambda: official.pack(list(official.members("s1", official.table_of(3)))),
        r"is none of BigEarthNet-S2 .*is it another archive\?",
        id="another archive",
    ),
    pytest.param(lambda: official.pack(s2_members(1)[:-1]), r"S2\w+ has no B8A", id="missing band"),
    pytest.param(lambda: official.pack(shuffled_bands()), r"has no B0", id="scattered"),
    pytest.param(
        lambda: official.pack([s2_members(1)[0], *s2_members(1)]), r"_B01.tif comes twice", id="file twice"
    ),
    pytest.param(
        lambda: official.pack([("BigEarthNet-S2/big.tif", bytes(2 << 20))]),
        "no patch file is that large",
        id="huge",
    ),
    pytest.param(
        lambda: official.pack(with_pixels(truncated)), r"_B01.tif: truncated, its pixels", id="cut tiff"
    ),
    pytest.param(
        lambda: official.pack(with_pixels(float_tiff)), r"_B01.tif: must be uint16 .* got float32", id="dtype"
    ),
]


@pytest.mark.parametrize("at", ["start", "end"])
def test_frames_of_zstd_that_hold_nothing_are_passed_over(tmp_path, at):
    # pzstd begins with one, of a few bytes that tell sizes.
    packed, nothing = official.pack(s2_members(2)), b"\x50\x2a\x4d\x18\x04\0\0\0size"
    plain = archive(tmp_path, packed)
    expected = list(plain.iter_payloads("s2", wanted=lambda _: True))
    other = tmp_path / "other"
    other.mkdir()

    found = archive(other, nothing + packed if at == "start" else packed + nothing)

    assert list(found.iter_payloads("s2", wanted=lambda _: True)) == expected


@pytest.mark.parametrize(("make", "message"), BROKEN)
def test_a_broken_or_hostile_archive_is_named_with_what_is_wrong(make, message, tmp_path):
    source = archive(tmp_path, make())

    with pytest.raises((SourceError, InvalidPatchError), match=message) as caught:
        payloads_of(source, "s2")
    assert "BigEarthNet-S2.tar.zst" in str(caught.value)


def test_a_flipped_bit_never_ends_in_a_wrong_payload_unnoticed_or_another_error(tmp_path):
    """zstd of the official archives has no checksum of its contents: damage must at least not pass as another thing."""
    good = official.pack(s2_members())
    expected = payloads_of(archive(tmp_path, good), "s2")
    rng, refused = np.random.default_rng(0), 0
    for at in rng.integers(0, len(good), 40):
        data = bytearray(good)
        data[at] ^= 1 << int(rng.integers(8))
        try:
            found = payloads_of(archive(tmp_path, bytes(data)), "s2")
        except (SourceError, InvalidPatchError):
            refused += 1
            continue
        assert found.keys() == expected.keys()
    assert refused


def test_a_patch_that_comes_twice_or_is_unknown_or_missing_stops_the_build(tmp_path):
    table = official.table_of(24)
    plan_of = functools.partial(make_plan, scratch=tmp_path / "scratch")
    files = s2_members(2)

    twice = archive(tmp_path, official.pack([*files, *files[:12]]))
    with pytest.raises(SourceError, match=r"S2\w+: this s2 patch comes twice in"):
        build(plan_of(twice, table.slice(0, 2), open_store(tmp_path / "a")))

    whole = archive(tmp_path, official.pack(files))
    other = table.slice(20, 1)
    with pytest.raises(SourceError, match=r"not in the s2 archive .* \(1 of 1 patches .* whole archive"):
        build(plan_of(whole, other, open_store(tmp_path / "b")))
    with pytest.raises(SourceError, match=r"not in the s2 archive .* \(3 of 5 patches .* whole archive"):
        build(plan_of(whole, table.slice(0, 5), open_store(tmp_path / "c")))


def test_a_missing_archive_is_named(tmp_path):
    source = ArchiveSource({"s1": (open_store(tmp_path), ARCHIVES["s1"])})

    with pytest.raises(SourceError, match=r"BigEarthNet-S1.tar.zst: no such archive"):
        payloads_of(source, "s1")
