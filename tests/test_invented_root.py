"""A root of an invented dataset: built, streamed, searched, exported, verified and served by the same public code.

Nothing in it is BigEarthNet's: other modalities, shapes and dtypes, patches of 600 m, seven classes, ids of another
grammar, metadata of its own. Pixels are computed from (patch, tensor, place), so that any mix-up shows.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.root.patch import Patch
from reben_cloud.schema import ArraySpec, Classes, Modality, Schema, TensorSpec
from reben_cloud.store import open_store

NUM_PATCHES = 41
NAMES = ("Reef", "Sand", "Seagrass", "Rubble", "Rock", "Mud", "Open water")
FIRST_CODE = 70_000


def image(name, dtype, size, **facts):
    return TensorSpec(name=name, shape=(size, size), dtype=dtype, pixel_m=600 / size, **facts)


TONES = Modality(
    name="tones",
    title="Aerial pictures",
    tensors=tuple(image(name, "uint8", 30, units="0.004") for name in ("near", "far", "deep")),
    arrays=(
        ArraySpec(
            name="tones",
            tensors=("far", "near", "deep"),
            stacked=True,
            dims=("tone", "y", "x"),
            zarr_name="tones",
        ),
    ),
)
DEPTH = Modality(
    name="depth",
    tensors=(image("depth", "float32", 10, units="m", fill=float("nan")),),
    key_column="dive",
    key_suffix=".depth",
)
CUBE = Modality(
    name="cube", tensors=(TensorSpec(name="cube", shape=(3, 7, 5, 5), dtype="int8"),), key_suffix=".cube"
)
WORDS = Modality(
    name="words", tensors=(TensorSpec(name="vector", shape=(6,), dtype="float16"),), key_suffix=".words"
)
BED = Modality(name="bed", tensors=(image("class", "int32", 30),), key_suffix=".bed")
ODD = Modality(
    name="odd",
    key_suffix=".odd",
    tensors=(
        TensorSpec(name="alive", shape=(3,), dtype="bool"),
        TensorSpec(name="brain", shape=(2, 5), dtype="bfloat16"),
        TensorSpec(name="small", shape=(4,), dtype="float8_e5m2"),
        TensorSpec(name="count", shape=(), dtype="int64"),
    ),
)
REEFS = Schema(
    name="Reefs 1",
    modalities=(TONES, DEPTH, CUBE, WORDS, BED, ODD),
    classes=Classes(names=NAMES, codes=tuple((FIRST_CODE + n,) for n in range(7))),
    patch_m=600,
    map_array="bed",
    recommended_without=("murky",),
    description="Invented reefs.",
    license="CC0-1.0",
)


def metadata_of(count=NUM_PATCHES):
    """What is known of the patches: two surveys, two zones, a row of squares each."""
    number = np.arange(count)
    survey = number % 2
    return pa.table(
        {
            "patch_id": [
                f"reef-{n:03d}/{'ab'[s]}".replace("/", "~") for n, s in zip(number, survey, strict=True)
            ],
            "labels": [sorted({NAMES[n % 7], NAMES[n % 3]}) for n in number.tolist()],
            "split": [("train", "train", "validation", "test")[n % 4] for n in number.tolist()],
            "product": [f"survey_{s}" for s in survey.tolist()],
            "datetime": pa.array((1_700_000_000 + 3600 * number) * 1_000_000, pa.timestamp("us", "UTC")),
            "epsg": np.where(survey, 32755, 32633),
            "x0": 500_000 + 600 * number,
            "y0": np.where(survey, 8_000_000, 4_000_000),
            "dive": [f"dive {n}" for n in number.tolist()],
            "visibility_m": number / 4,
            "murky": number % 5 == 4,
        }
    )


def tensor_of(patch_id, labels, spec):
    """One tensor of a patch, from its id and name alone; the map from its labels."""
    if spec.name == "class":
        codes = np.array([FIRST_CODE + NAMES.index(label) for label in labels], np.int32)
        return np.resize(codes, spec.shape)
    seed = zlib.crc32(f"{patch_id} {spec.name}".encode())
    values = (seed + np.arange(math.prod(spec.shape)) * 7) % 97
    if spec.dtype == "bool":
        values %= 2
    return values.astype(spec.storage).reshape(spec.shape)


def tensors_of(patch_id, labels, modality):
    return {spec.name: tensor_of(patch_id, labels, spec) for spec in modality.tensors}


@dataclass(frozen=True, slots=True)
class Surveys:
    """A source such as somebody else would write: it satisfies the protocol and inherits nothing."""

    schema: Schema = REEFS
    kind: str = "surveys"
    is_remote: bool = False
    left_out = {}  # noqa: RUF012

    def describe(self):
        return "invented surveys"

    def described(self, metadata):
        return metadata

    def names(self):
        return dict.fromkeys(self.schema.modality_names)

    def identity(self):
        return {}

    def stamp(self, info, modalities):
        return ""

    def read(self, info, modalities):
        return Patch(
            info=info,
            payloads={
                m.name: m.encode(tensors_of(info.patch_id, info.labels, m))
                for m in map(self.schema.modality, modalities)
            },
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from reben_cloud.root.placement import PlacementOptions

    folder = tmp_path_factory.mktemp("reefs") / "root"
    build(make_plan(Surveys(), metadata_of(), open_store(folder), options=PlacementOptions(shard_samples=8)))
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return rc.open(root)


LABELS = dict(zip(metadata_of()["patch_id"].to_pylist(), metadata_of()["labels"].to_pylist(), strict=True))


def test_it_is_opened_with_the_schema_that_it_was_built_with(dataset):
    assert dataset.schema == REEFS
    assert dataset.modalities == REEFS.modality_names
    assert len(dataset) == NUM_PATCHES
    assert sorted(dataset.search().patch_ids) == sorted(LABELS)


@pytest.mark.parametrize("deep", [False, True])
def test_it_verifies(dataset, deep):
    assert verify(dataset, deep=deep).problems == ()
