"""A parquet in the form of BigEarthNet.txt, of any size up to its own: its 13 columns, counts and forms of text.

Texts are invented, but for what a patch says itself: captions name its country, season, climate zone and labels, and
questions about these have the right answer. Everything is made column by column, a row group at a time.

    python -m tests.bigearthnet_txt texts.parquet metadata.parquet [--patches 464044]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.labels import CLASSES
from reben_cloud.bigearthnet.official import COUNTRIES

NUM_PATCHES = 464_044
NUM_ROWS = {"train": 4_674_281, "validation": 2_454_690, "test": 2_409_962, "bench": 15_029}
"""Split of the texts -> rows."""

NUM_OF_TYPE = {"binary": 3_625_160, "mcq": 3_259_184, "bounding box": 2_205_686, "captioning": 463_932}
"""Type -> rows."""

PATCHES = {"train": 227_017, "validation": 119_218, "test": 116_727, "bench": 1_082}
"""Split -> patches; those of ``bench`` are known and the others chosen, so that all have as many texts on average."""

MOST_ROWS = 67
MEDIAN_ROWS = 21
WITHOUT_CAPTION = 112
"""Patches of ``bench``."""

SCHEMA = pa.schema(
    [
        ("ID", pa.int64()),
        *(
            (name, pa.string())
            for name in ("s1_name", "patch_id", "input", "output", "type", "category", "split")
        ),
        *((name, pa.string()) for name in ("country", "season", "climate_zone")),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
    ]
)

SEASONS = ("winter", "spring", "summer", "autumn")
ZONES = (
    "Temperate, no dry season, warm summer",
    "Temperate, dry and hot summer",
    "Cold, no dry season, warm summer",
    "Cold, no dry season, cold summer",
)
"""Names of the climate zones; the first is that of countries not listed."""

_ZONE_OF = {"Portugal": 1, "Serbia": 2, "Kosovo": 2, "Lithuania": 2, "Finland": 3}
_ROWS_PER_GROUP = 131_072
_PLACES = ("left of", "right of", "above", "below")


class Text(NamedTuple):
    """One question and its answer."""

    type: str
    category: str
    input: str
    output: str


def write_texts(
    path: Path,
    table: pa.Table,
    *,
    num_patches: int = NUM_PATCHES,
    seed: int = 0,
    rows_per_group: int = _ROWS_PER_GROUP,
) -> None:
    """Write texts about patches, sorted by patch; memory is that of a few row groups and 20 bytes per text.

    Args:
        path: The file.
        table: Official metadata. Fewer patches of a split than wanted are all taken.
        num_patches: How many patches to write about; all counts are the real ones in this proportion.
        seed: Of all that is chosen.
        rows_per_group: Rows of a row group, about.
    """
    random = np.random.default_rng(seed)
    rows, splits = _choose(table, num_patches, random)
    patches = _Patches(table.take(rows).combine_chunks(), splits)
    pool, blocks = _pool(random)
    counts = _rows_per_patch(splits, random)
    captioned = np.ones(len(rows), bool)
    bench = np.flatnonzero(splits == "bench")
    captioned[bench[: round(WITHOUT_CAPTION * len(bench) / PATCHES["bench"])]] = False
    kinds = _kinds(int(counts.sum() - captioned.sum()), random)
    starts = np.concatenate([[0], np.cumsum(counts)])
    questions = np.concatenate([[0], np.cumsum(counts - captioned)])
    cuts = np.unique(
        np.searchsorted(starts, np.arange(0, starts[-1] + rows_per_group, rows_per_group), side="left")
    )
    cuts = np.unique(np.minimum(np.append(cuts, len(rows)), len(rows)))
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        for begin, end in itertools.pairwise(cuts.tolist()):
            of = np.repeat(np.arange(begin, end), counts[begin:end])
            first = np.zeros(len(of), bool)
            first[(starts[begin:end] - starts[begin])[captioned[begin:end]]] = True
            index = np.empty(len(of), np.int64)
            index[first] = len(pool) + of[first] - begin  # a caption of its own for each patch
            index[~first] = _questions(
                kinds[questions[begin] : questions[end]], of[~first], patches, blocks, random
            )
            file.write_table(_rows(int(starts[begin]), of, index, pool, patches, begin, end))


class _Patches:
    """What is said of the chosen patches, a value each."""

    def __init__(self, table: pa.Table, splits: NDArray[np.str_]) -> None:
        ids = table.column("patch_id").to_pylist()
        self.columns = {
            name: table.column(name).combine_chunks() for name in ("s1_name", "patch_id", "country")
        }
        self.country = pc.index_in(self.columns["country"], pa.array(COUNTRIES)).to_numpy()
        month, day = (np.array([i[a:b] for i in ids], "S2").astype(int) for a, b in ((15, 17), (17, 19)))
        # Seasons of astronomers: not those of `grid.season`, which go by calendar month.
        self.season = (month * 100 + day - 321 + 300) // 300 % 4
        self.zone = np.array([_ZONE_OF.get(name, 0) for name in COUNTRIES])[self.country]
        self.columns["season"] = pa.array(SEASONS).take(pa.array(self.season))
        self.columns["climate_zone"] = pa.array(ZONES).take(pa.array(self.zone))
        self.columns["split"] = pa.array(splits.tolist(), pa.string())
        labels = pc.binary_join(table.column("labels").combine_chunks(), " and ")
        self.captions = pc.binary_join_element_wise(
            pc.binary_join_element_wise("This image of ", self.columns["country"], ", taken in ", ""),
            pc.binary_join_element_wise(self.columns["season"], ", lies in the climate zone ", ""),
            pc.binary_join_element_wise(self.columns["climate_zone"], ". It shows ", labels, ".", ""),
            "",
        )
        epsg, minx, miny, maxx, maxy = grid.footprints(ids)
        self.longitude, self.latitude = np.empty(len(ids)), np.empty(len(ids))
        for code in np.unique(epsg).tolist():
            mine = epsg == code
            to_lonlat = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
            centres = (minx + maxx)[mine] / 2, (miny + maxy)[mine] / 2
            self.longitude[mine], self.latitude[mine] = to_lonlat.transform(*centres)


def _choose(
    table: pa.Table, num_patches: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Rows of the patches that get texts, by patch id, and their splits."""
    scale = min(num_patches, len(table)) / NUM_PATCHES
    wanted = {split: round(number * num_patches / NUM_PATCHES) for split, number in PATCHES.items()}
    official = np.array(table.column("split").to_pylist())
    found: dict[str, NDArray[np.int64]] = {}
    for split in ("train", "validation", "test"):
        found[split] = random.permutation(np.flatnonzero(official == split))
    num_bench = max(round(PATCHES["bench"] * scale), min(1, len(found["test"]) - 1))
    found["bench"], found["test"] = np.split(found["test"], [max(num_bench, 0)])
    rows = np.concatenate(
        [mine[: wanted[split]] if split != "bench" else mine for split, mine in found.items()]
    )
    splits = np.concatenate(
        [
            [split] * min(len(mine), len(mine) if split == "bench" else wanted[split])
            for split, mine in found.items()
        ]
    )
    ids = np.array(table.column("patch_id").to_pylist(), np.bytes_)
    order = np.argsort(ids[rows], kind="stable")
    return rows[order], splits[order]


def _rows_per_patch(splits: NDArray[np.str_], random: np.random.Generator) -> NDArray[np.int64]:
    """Texts of each patch, 1 to `MOST_ROWS`, whose sums by split are the real ones in proportion."""
    counts = np.empty(len(splits), np.int64)
    for split, num_rows in NUM_ROWS.items():
        mine = np.flatnonzero(splits == split)
        if not len(mine):
            continue
        total = round(num_rows * len(mine) / PATCHES[split])
        # Some patches have few, so that the mean is below the median, as it is there; and one has the most.
        few = random.random(len(mine)) < 0.06
        middle = (total / len(mine) - 0.06 * 5.5) / 0.94
        drawn = np.where(
            few, random.integers(1, 11, len(mine)), random.normal(middle, middle / 3.5, len(mine))
        )
        drawn = np.rint(drawn)
        drawn[random.integers(len(mine))] = MOST_ROWS
        drawn = np.clip(drawn, 1, MOST_ROWS).astype(np.int64)
        while lacking := total - int(drawn.sum()):
            step = 1 if lacking > 0 else -1
            may = np.flatnonzero((drawn + step >= 1) & (drawn + step <= MOST_ROWS))
            drawn[random.permutation(may)[: abs(lacking)]] += step
        counts[mine] = drawn
    return counts


def _kinds(number: int, random: np.random.Generator) -> NDArray[np.int8]:
    """0 binary, 1 mcq, 2 bounding box, in their proportions, shuffled."""
    shares = np.array([NUM_OF_TYPE[name] for name in ("binary", "mcq", "bounding box")])
    ends = np.rint(np.cumsum(shares) / shares.sum() * number).astype(np.int64)
    kinds = np.repeat(np.arange(3, dtype=np.int8), np.diff(ends, prepend=0))
    random.shuffle(kinds)
    return kinds


def _questions(
    kinds: NDArray[np.int8],
    patch: NDArray[np.int64],
    patches: _Patches,
    blocks: dict[str, tuple[int, int]],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Which text of the pool each row has."""
    # An eighth of the choices is about what the patch says of itself, a block of the pool for each answer.
    which = random.integers(0, 24, len(kinds))
    names = np.where(kinds == 0, 0, np.where(kinds == 2, 2, 1))
    names = np.where((kinds == 1) & (which < 3), 3 + which, names)
    about = (patches.country[patch], patches.season[patch], patches.zone[patch])
    found = np.empty(len(kinds), np.int64)
    for number, (start, size) in enumerate(blocks.values()):
        mine = names == number
        begin = start if number < 3 else start + about[number - 3][mine] * size
        found[mine] = begin + random.integers(0, size, int(mine.sum()))
    return found


def _rows(
    first: int,
    of: NDArray[np.int64],
    index: NDArray[np.int64],
    pool: list[Text],
    patches: _Patches,
    begin: int,
    end: int,
) -> pa.Table:
    """One row group."""
    captions = patches.captions.slice(begin, end - begin)
    number = len(captions)
    prompt = pa.array(["Describe the image in a few sentences."] * number)
    more = {
        "input": prompt,
        "output": captions,
        "type": pa.array(["captioning"] * number),
        "category": pa.array(["None"] * number),
    }
    taken = pa.array(index)
    columns = {
        name: pa.concat_arrays([pa.array([getattr(text, name) for text in pool]), more[name]]).take(taken)
        for name in more
    }
    rows = pa.array(of)
    columns |= {name: column.take(rows) for name, column in patches.columns.items()}
    columns |= {"ID": pa.array(first + np.arange(len(of)))}
    columns |= {"latitude": pa.array(patches.latitude[of]), "longitude": pa.array(patches.longitude[of])}
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def _pool(random: np.random.Generator) -> tuple[list[Text], dict[str, tuple[int, int]]]:
    """All texts but captions; and by kind where they begin and how many there are, of each answer where it counts."""
    parts = {
        "binary": _binary(),
        "mcq": _choices(random),
        "bounding box": _boxes(random),
        "country": _about("country", "In which country was this image taken?", COUNTRIES, random),
        "season": _about("season", "In which season was this image taken?", SEASONS, random),
        "climate zone": _about("climate zone", "In which climate zone does this place lie?", ZONES, random),
    }
    answers = {"country": len(COUNTRIES), "season": len(SEASONS), "climate zone": len(ZONES)}
    pool: list[Text] = []
    blocks = {}
    for name, texts in parts.items():
        blocks[name] = (len(pool), len(texts) // answers.get(name, 1))
        pool += texts
    return pool, blocks


def _binary() -> list[Text]:
    names = [name.lower() for name in CLASSES]
    yes_no = ("yes", "no")
    found = [
        Text("binary", "presence", f"Is there {name} in the image?", a) for name in names for a in yes_no
    ]
    found += [
        Text("binary", "area", f"Does {name} cover more than {share} % of the image?", a)
        for name in names for share in (5, 10, 25, 50) for a in yes_no
    ]  # fmt: skip
    for one, other in itertools.permutations(names, 2):
        found += [Text("binary", "adjacency", f"Does {one} border on {other}?", a) for a in yes_no]
        where = _PLACES[(len(one) + len(other)) % 4]
        found += [
            Text("binary", "relative pos", f"Is the largest {one} {where} the largest {other}?", a)
            for a in yes_no
        ]
    return found


def _choices(random: np.random.Generator) -> list[Text]:
    found = []
    for name in (name.lower() for name in CLASSES):
        for letter in "abcd":
            areas = "a) less than 1,000 m², b) 1,000 to 50,000 m², c) 50,000 m² to 0.5 km², d) more"
            found.append(Text("mcq", "area", f"How large is the area of {name}? {areas}", letter))
            counts = "a) 1, b) 2, c) 3, d) 4 or more"
            found.append(
                Text("mcq", "count", f"How many separate areas of {name} are there? {counts}", letter)
            )
            where = ", ".join(f"{a}) {place} the centre" for a, place in zip("abcd", _PLACES, strict=True))
            found.append(Text("mcq", "relative pos", f"Where is the largest area of {name}? {where}", letter))
            for _ in range(5):
                options = random.permutation([other.lower() for other in CLASSES if other.lower() != name])[
                    :4
                ]
                listed = ", ".join(f"{a}) {option}" for a, option in zip("abcd", options, strict=True))
                found.append(Text("mcq", "adjacency", f"Which of these borders on {name}? {listed}", letter))
                found.append(Text("mcq", "presence", f"Which is there beside {name}? {listed}", letter))
    return found


def _about(category: str, asked: str, answers: tuple[str, ...], random: np.random.Generator) -> list[Text]:
    """The same number of texts for each answer, one after the other; the letter is the right one."""
    found = []
    for answer in answers:
        for number in range(24):
            others = random.permutation([other for other in answers if other != answer])[:3].tolist()
            right = number % 4
            options = [*others[:right], answer, *others[right:]]
            listed = ", ".join(f"{a}) {option}" for a, option in zip("abcd", options, strict=True))
            found.append(Text("mcq", category, f"{asked} {listed}", "abcd"[right]))
    return found


def _boxes(random: np.random.Generator, number: int = 20_000) -> list[Text]:
    found = []
    names = [name.lower() for name in CLASSES]
    edges = np.sort(random.integers(0, 101, (number, 2, 2)), axis=2)
    edges[..., 1] += edges[..., 0] == edges[..., 1]
    edges -= edges[..., 1:] > 100  # one that is empty at the edge
    parts = random.random((number, 2))
    for n, ((x1, x2), (y1, y2)) in enumerate((edges / 100).tolist()):
        box = f"[{x1} {y1}, {x2} {y2}]"
        if n % 2:
            size = ("largest", "smallest", "northernmost")[n % 3]
            asked = f"Give the box of <ref>the {size} {names[n % len(names)]}</ref>."
            found.append(Text("bounding box", "reference", asked, box))
        else:
            x, y = round(x1 + parts[n, 0] * (x2 - x1), 2), round(y1 + parts[n, 1] * (y2 - y1), 2)
            found.append(
                Text("bounding box", "point", f"Give the box of the area at <point>({x}, {y})</point>.", box)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("metadata", type=Path, nargs="+")
    parser.add_argument("--patches", type=int, default=NUM_PATCHES)
    arguments = parser.parse_args()
    table = pa.concat_tables([pq.read_table(path) for path in arguments.metadata])
    write_texts(arguments.path, table, num_patches=arguments.patches)


if __name__ == "__main__":
    main()
