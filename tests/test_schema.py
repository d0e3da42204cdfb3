"""Schemas: what follows from one equals what safetensors writes and what reBEN's roots have always had."""

import dataclasses
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from reben_cloud.bigearthnet.own import is_alike, own_schema
from reben_cloud.bigearthnet.reben import REBEN, S1
from reben_cloud.errors import InvalidPatchError
from reben_cloud.root.manifest import identity_of
from reben_cloud.schema import DTYPES, ArraySpec, Classes, Modality, Schema, TensorSpec

BY_NUMPY = [name for name, dtype in DTYPES.items() if not name.startswith(("bfloat", "float8"))]

tensors = st.lists(
    st.builds(
        TensorSpec,
        name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True),
        shape=st.lists(st.integers(1, 5), max_size=4).map(tuple),
        dtype=st.sampled_from(BY_NUMPY),
        fill=st.just(0),
    ).flatmap(
        lambda t: st.sampled_from(
            [0, 1.5, math.nan, -math.inf] if t.dtype.startswith("float") else [0, 1]
        ).map(lambda fill: dataclasses.replace(t, fill=fill))
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda tensor: tensor.name.lower(),
)


def values_of(modality, seed=0):
    generator = np.random.default_rng(seed)
    return {
        t.name: np.frombuffer(generator.bytes(t.nbytes), t.storage).reshape(t.shape) for t in modality.tensors
    }


@given(tensors)
def test_a_payload_is_what_safetensors_writes(specs):
    modality = Modality(
        name="m",
        tensors=specs,
        arrays=[
            ArraySpec(
                name=f"a{i}",
                tensors=[t.name],
                stacked=False,
                dims=[f"d{j}" for j in range(len(t.shape))],
                zarr_name=f"a{i}",
            )
            for i, t in enumerate(specs)
        ],
    )
    values = values_of(modality)
    values = {n: v.astype("?") if v.dtype == np.bool_ else v for n, v in values.items()}

    payload = modality.encode(values)

    assert payload == safetensors.numpy.save(values)
    assert len(payload) == modality.payload_bytes
    assert payload.startswith(modality.payload_header)
    for name, array in modality.decode(payload).items():
        assert array.tobytes() == values[name].tobytes()
    assert modality.unstack(modality.stack(payload)) == payload


@given(tensors)
def test_copies_fill_every_byte_of_a_sample_once(specs):
    try:
        modality = Modality(name="m", tensors=specs)
    except ValueError:  # two names that become one
        return
    payload = modality.encode(values_of(modality))

    found = {name: np.zeros(spec.nbytes, np.uint8) for name, spec in modality.samples.items()}
    written = dict.fromkeys(found, 0)
    for piece in modality.copies:
        data = np.frombuffer(payload, np.uint8, piece.nbytes, piece.source)
        found[piece.array][piece.target : piece.target + piece.nbytes] = data
        written[piece.array] += piece.nbytes

    for name, array in modality.stack(payload).items():
        assert written[name] == modality.samples[name].nbytes
        assert found[name].tobytes() == array.tobytes()


@given(tensors)
def test_a_schema_survives_its_json(specs):
    try:
        modality = Modality(name="m", tensors=specs, key_column="s1_name", key_suffix="_x")
    except ValueError:
        return
    schema = Schema(name="made up", modalities=(modality,), classes=Classes(names=("a", "b")), patch_m=600.0)

    text = json.dumps(schema.to_json(), allow_nan=False)

    assert Schema.from_json(json.loads(text)) == schema
    assert Schema.from_json(json.loads(text)).modality("m").payload_header == modality.payload_header


def test_rebens_payloads_have_the_sizes_of_rico_hdl():
    assert {m.name: m.payload_bytes for m in REBEN.modalities} == {
        "s2": 160_832,
        "s1": 115_344,
        "map": 28_880,
    }
    assert [len(m.copies) for m in REBEN.modalities] == [7, 2, 1]
    assert {n: (s.shape, s.dtype.str) for m in REBEN.modalities for n, s in m.samples.items()} == {
        "s2_10m": ((4, 120, 120), "<u2"),
        "s2_20m": ((6, 60, 60), "<u2"),
        "s2_60m": ((2, 20, 20), "<u2"),
        "s1": ((2, 120, 120), "<f4"),
        "map": ((120, 120), "<u2"),
    }
    row = {"patch_id": "P", "s1_name": "S"}
    assert [m.key(row) for m in REBEN.modalities] == ["P", "S", "P_reference_map"]
    assert len(REBEN.classes) == 19
    assert sum(len(codes) for codes in REBEN.classes.codes) == 32
    assert Schema.from_json(json.loads(json.dumps(REBEN.to_json()))) == REBEN
    assert REBEN.only(["map", "s2"]).modality_names == ("s2", "map")
    assert REBEN.only(["s1"]).map_array is None


def test_payloads_of_another_form_are_refused():
    s1 = REBEN.modality("s1")
    payload = s1.encode(values_of(s1))

    s1.check(payload, name="P")

    with pytest.raises(InvalidPatchError, match="P: the s1 payload must have 115,344 bytes, got 115,343"):
        s1.check(payload[:-1], name="P")
    with pytest.raises(InvalidPatchError, match="another safetensors header"):
        s1.check(payload[:10] + b"?" + payload[11:], name="P")
    with pytest.raises(InvalidPatchError, match="must have the tensors VH, VV, got VV"):
        s1.encode({"VV": np.zeros((120, 120), np.float32)})
    with pytest.raises(InvalidPatchError, match=r"VH must be float32 of shape \(120, 120\), got float64"):
        s1.encode({"VV": np.zeros((120, 120), np.float32), "VH": np.zeros((120, 120))})


TENSOR = TensorSpec(name="t", shape=(2, 2), dtype="uint8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorSpec(name="", shape=(1,), dtype="uint8"), "not a valid name"),
        (lambda: TensorSpec(name="__metadata__", shape=(1,), dtype="uint8"), "not a valid name"),
        (lambda: TensorSpec(name="t", shape=(0,), dtype="uint8"), "sizes of at least 1"),
        (lambda: TensorSpec(name="t", shape=(True,), dtype="uint8"), "sizes of at least 1"),
        (lambda: TensorSpec(name="t", shape=(1,), dtype="complex64"), "dtype must be one of bool"),
        (lambda: TensorSpec(name="t", shape=(4,), dtype="uint8", pixel_m=10), "needs two axes"),
        (lambda: Modality(name="../s2", tensors=(TENSOR,)), "small letters"),
        (lambda: Modality(name="m", tensors=()), "needs tensors"),
        (lambda: Modality(name="m", tensors=(TENSOR, TENSOR)), "different names"),
        (
            lambda: Modality(
                name="m",
                tensors=(TENSOR,),
                arrays=(ArraySpec(name="a", tensors=("u",), stacked=False, dims=("y", "x"), zarr_name="a"),),
            ),
            "each of its tensors once",
        ),
        (lambda: TensorSpec(name="t", shape=(4,), dtype="uint8", fill=256), "no value 256"),
        (lambda: TensorSpec(name="t", shape=(4,), dtype="int16", fill=math.nan), "no value nan"),
        (lambda: TensorSpec(name="t", shape=(4,), dtype="bfloat16", fill=1), "no value 1"),
        (lambda: Classes(names=()), "1 to 65,535 classes"),
        (lambda: Classes(names=("a", "a")), "different names"),
        (lambda: Classes(names=("a", "b"), codes=((1,), (1,))), "one class only"),
        (lambda: Classes(names=("a",), colors=("red",)), "#rrggbb"),
        (
            lambda: Schema(
                name="x",
                modalities=(Modality(name="labels", tensors=(TENSOR,)),),
                classes=Classes(names=("a",)),
                patch_m=1,
            ),
            "is what every batch or store holds",
        ),
        (
            lambda: Schema(
                name="x",
                modalities=(
                    Modality(
                        name="m",
                        tensors=(TensorSpec(name="t", shape=(60, 60), dtype="uint8", pixel_m=10),),
                    ),
                ),
                classes=Classes(names=("a",)),
                patch_m=1200,
            ),
            "are not the 1200 m of a patch",
        ),
        (lambda: Schema.from_json({}), "not a valid schema"),
        (lambda: Schema.from_json({**REBEN.to_json(), "extra": 1}), "not a valid schema"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schema_is_pickled_whatever_was_asked_of_it_before():
    tensor = TensorSpec(name="t", shape=(4, 4), dtype="float32", fill=math.nan)
    schema = dataclasses.replace(
        REBEN, modalities=(*REBEN.modalities, Modality(name="more", tensors=(tensor,)))
    )
    assert schema.bands
    assert all(m.payload_bytes and m.samples and m.specs for m in schema.modalities)
    assert schema.classes.labels_in(np.full((2, 2), 111, np.uint16), name="m")

    again = pickle.loads(pickle.dumps(schema))

    assert again == schema
    assert list(again.bands) == list(schema.bands)


def test_how_labels_follow_from_a_map_is_part_of_a_schema():
    plain = own_schema()
    strict = replace(plain, classes=replace(plain.classes, label_rule="majority", min_share=0.1))

    assert Schema.from_json(json.loads(json.dumps(strict.to_json()))) == strict
    # The first manifests had no such keys: what they mean is what there was, and fingerprints stay as they were.
    assert not {"label_rule", "min_share"} & plain.to_json()["classes"].keys()
    assert Schema.from_json(plain.to_json()) == plain
    assert {"label_rule", "min_share"} <= strict.to_json()["classes"].keys()


def test_rebens_schema_is_one_of_its_kind_and_roots_of_it_keep_their_fingerprint():
    own = own_schema(name=REBEN.name, land_cover="CORINE Land Cover 2018")
    before = replace(REBEN, classes=replace(REBEN.classes, without_class=()))

    assert own.modalities == REBEN.modalities
    assert identity_of(before) == identity_of(REBEN) == ["s2", "s1", "map"]
    assert identity_of(replace(REBEN, patch_m=1200, classes=Classes(names=("a",)))) != ["s2", "s1", "map"]
    assert is_alike(own_schema(bands=("B02",), patch_m=2400, has_s1=False))
    assert not is_alike(replace(own, modalities=(replace(S1, name="s2"),), map_array=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"bands": ("B10",)}, "'B10' is not a band of Sentinel-2 Level-2A", id="band"),
        pytest.param({"bands": ("VV",)}, "'VV' is not a band of Sentinel-2", id="radar"),
        pytest.param({"bands": ()}, "at least one, got none", id="none"),
        pytest.param({"bands": ("B02", "B02")}, "different names", id="twice"),
        pytest.param({"patch_m": 1000}, r"multiple of its largest pixel \(60 m", id="60 m"),
        pytest.param({"patch_m": 1010, "bands": ("B05",)}, r"largest pixel \(20 m", id="20 m"),
    ],
)
def test_a_schema_of_ones_own_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        own_schema(**options)


@pytest.mark.parametrize(("pixels", "wanted"), [(1007, False), (1008, True)])
def test_a_share_is_reached_by_as_many_pixels(pixels, wanted):
    """As floats, 0.07 * 14,400 is above 1,008."""
    classes = Classes(names=("a", "b"), codes=((1,), (2,)), min_share=0.07)
    codes = np.full(120 * 120, 1)
    codes[:pixels] = 2

    assert ("b" in classes.labels_in(codes, name="x")) is wanted
