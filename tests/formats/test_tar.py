"""Shards: golden bytes, independent readers, the strided view and its fall-back."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import InvalidPatchError
from reben_cloud.formats import tar

MODALITIES = ("s2", "s1", "map")


def payload_of(modality, number):
    rng = np.random.Generator(np.random.Philox(key=number))
    arrays = {
        name: rng.integers(0, 2**15, t.shape).astype(t.dtype)
        for name, t in REBEN.modality(modality).places.items()
    }
    return REBEN.modality(modality).encode(arrays), arrays


def samples_of(modality, count):
    return [
        (
            f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{i:02d}_57",
            payload_of(modality, i)[0],
            {"patch_id": i, "labels": ["Arable land"]},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_tarfile_reads_what_was_written(modality, count):
    samples = samples_of(modality, count)

    shard = tar.encode_shard(REBEN.modality(modality), samples, num_samples=len(samples))

    with tarfile.open(fileobj=io.BytesIO(shard)) as file:
        members = {m.name: file.extractfile(m).read() for m in file}
    assert len(members) == 2 * count
    for patch_id, payload, metadata in samples:
        assert members[f"{patch_id}.{modality}.safetensors"] == payload
        assert json.loads(members[f"{patch_id}.json"]) == metadata


@pytest.mark.parametrize("modality", MODALITIES)
def test_webdataset_and_safetensors_read_it_with_no_help(modality, tmp_path):
    samples = samples_of(modality, 3)
    path = tmp_path / "train-000000.tar"
    path.write_bytes(tar.encode_shard(REBEN.modality(modality), samples, num_samples=len(samples)))

    read = list(wds.WebDataset(str(path), shardshuffle=False))

    assert [sample["__key__"] for sample in read] == [patch_id for patch_id, _, _ in samples]
    for number, sample in enumerate(read):
        tensors = load(sample[f"{modality}.safetensors"])
        for name, array in payload_of(modality, number)[1].items():
            np.testing.assert_array_equal(tensors[name], array)


def test_shard_bytes_are_fixed_for_good():
    """Users keep shards for years, and a resumed build must meet its own bytes."""
    digests = {
        m: hashlib.sha256(tar.encode_shard(REBEN.modality(m), samples_of(m, 3), num_samples=3)).hexdigest()
        for m in MODALITIES
    }

    assert {m: tar.record_bytes(REBEN.modality(m)) for m in MODALITIES} == {
        "s2": 163_328,
        "s1": 117_760,
        "map": 31_232,
    }
    assert digests == GOLDEN


GOLDEN = {
    "s2": "55f81283bf17acdca8103dc48b9f6f83ce97145ef2e669ace623d29cb4edd82c",
    "s1": "f9f3d655509823c11060fcc208ec103e640590dc74086093593b89d190a1d576",
    "map": "87c7eb5c6ff9cda1a28b769dc40dedc7ab1252e2b935d91a4a7ebc89795e16a1",
}


@given(modality=st.sampled_from(MODALITIES), count=st.integers(0, 12))
def test_records_are_a_view_of_every_sample(modality, count):
    samples = samples_of(modality, count)
    shard = tar.encode_shard(REBEN.modality(modality), samples, num_samples=len(samples))

    view = tar.records(REBEN.modality(modality), shard)

    assert view.shape == (count, tar.record_bytes(REBEN.modality(modality)))
    assert tar.patch_ids(view) == [patch_id for patch_id, _, _ in samples]
    assert np.shares_memory(view, np.frombuffer(shard, np.uint8)) == bool(count)
    start, stop = tar.PAYLOAD_OFFSET, tar.PAYLOAD_OFFSET + len(samples[0][1]) if samples else 0
    assert [bytes(record[start:stop]) for record in view] == [p for _, p, _ in samples]
    found = tar.find_payloads(REBEN.modality(modality), io.BytesIO(shard))
    assert found == {
        f"{patch_id}.{modality}.safetensors": row * tar.record_bytes(REBEN.modality(modality)) + start
        for row, (patch_id, _, _) in enumerate(samples)
    }


def test_a_shard_of_webdatasets_own_writer_is_read_the_slow_way(tmp_path):
    samples = samples_of("s1", 3)
    path = tmp_path / "foreign.tar"
    with wds.TarWriter(str(path), mtime=0) as writer:
        for patch_id, payload, metadata in samples:
            writer.write({"__key__": patch_id, "s1.safetensors": payload, "json": metadata})
    shard = path.read_bytes()

    assert tar.records(REBEN.modality("s1"), shard) is None
    found = tar.find_payloads(REBEN.modality("s1"), io.BytesIO(shard))
    for patch_id, payload, _ in samples:
        start = found[f"{patch_id}.s1.safetensors"]
        assert shard[start : start + len(payload)] == payload


def test_a_member_that_is_not_a_payload_of_its_modality_is_refused():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as writer:
        info = tarfile.TarInfo("a.s1.safetensors")
        info.size = 7
        writer.addfile(info, io.BytesIO(b"x" * 7))

    with pytest.raises(InvalidPatchError, match=r"a\.s1\.safetensors: not a payload of s1"):
        tar.find_payloads(REBEN.modality("s1"), io.BytesIO(out.getvalue()))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda shard: shard[:-512], id="truncated"),
        pytest.param(lambda shard: shard + bytes(10240), id="grown"),
        pytest.param(lambda shard: shard[: 512 + 20] + b"!" + shard[512 + 21 :], id="safetensors header"),
        pytest.param(lambda shard: shard[:124] + b"7" + shard[125:], id="member size"),
        pytest.param(lambda shard: shard[117_760:], id="first record cut off"),
    ],
)
def test_damage_to_the_structure_is_noticed(damage):
    shard = bytes(tar.encode_shard(REBEN.modality("s1"), samples_of("s1", 3), num_samples=3))

    assert tar.records(REBEN.modality("s1"), damage(shard)) is None


def test_a_payload_is_cut_out_of_its_own_record_only():
    shard = bytes(tar.encode_shard(REBEN.modality("map"), samples_of("map", 2), num_samples=2))
    size, (patch_id, payload, _) = tar.record_bytes(REBEN.modality("map")), samples_of("map", 2)[1]

    assert tar.payload_of(REBEN.modality("map"), shard[size : 2 * size], patch_id) == payload
    assert tar.payload_of(REBEN.modality("map"), shard[:size], patch_id) is None
    assert tar.payload_of(REBEN.modality("map"), shard[size : 2 * size - 1], patch_id) is None
    assert tar.payload_of(REBEN.modality("map"), shard[size : 2 * size], patch_id[:-1]) is None


def test_wrong_payloads_are_refused():
    with pytest.raises(InvalidPatchError, match="patch-1: the s1 payload must have 115,344 bytes, got 3"):
        tar.encode_shard(REBEN.modality("s1"), [("patch-1", b"abc", {})], num_samples=1)
    wrong = b"?" * REBEN.modality("map").payload_bytes
    with pytest.raises(InvalidPatchError, match="another safetensors header"):
        tar.encode_shard(REBEN.modality("map"), [("patch-1", wrong, {})], num_samples=1)
    for count in (2, 4):
        with pytest.raises(ValueError, match="argument 2 is"):
            tar.encode_shard(REBEN.modality("map"), samples_of("map", 3), num_samples=count)
    with pytest.raises(InvalidPatchError, match="takes 2012 bytes as JSON"):
        tar.encode_json({"x": "y" * 2004})


@pytest.mark.parametrize("modality", MODALITIES)
def test_payload_is_what_the_safetensors_library_writes(modality):
    """The library sorts by dtype size and name; our constant header must be its header."""
    from safetensors.numpy import save

    payload, arrays = payload_of(modality, 5)

    assert payload == save(arrays)
    assert payload.startswith(REBEN.modality(modality).payload_header)
