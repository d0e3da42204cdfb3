"""BigEarthNet.txt with its pictures: a record for each text, as JSON lines or as conversations that LLaVA trains on."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa

from reben_cloud.bigearthnet.texts import (
    ANSWER_COLUMNS,
    TextError,
    hide_answers,
    parse_box,
    parse_choice,
    parse_point,
    parse_reference,
    replace_point,
)
from reben_cloud.errors import SourceError
from reben_cloud.export.copying import Progress
from reben_cloud.export.filewise import EachPatch, FilesReport, export_files
from reben_cloud.export.pictures import Flip, PictureMaker, PictureOptions, Stretch
from reben_cloud.export.pixels import PatchPixels
from reben_cloud.export.text_table import TextTable
from reben_cloud.files.paths import local_path
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.views.resize import Resampling

logger = logging.getLogger(__name__)

Form = Literal["jsonl", "llava"]
"""How texts are written."""

TEMPLATES: Mapping[str, str] = {
    "binary": "{question}\nAnswer yes or no.",
    "mcq": "{question}\n{options}\nAnswer with the letter of the right option.",
    "bounding box": "{question}\nAnswer with [left, top, right, bottom] in pixels of a picture of {size} x {size}.",
    "captioning": "{question}",
}
"""Type of a text -> what a conversation asks after an ``<image>`` for each picture; each option has its line."""


def export_texts(
    selection: Selection,
    path: str | os.PathLike[str],
    texts: str | os.PathLike[str],
    *,
    form: Form = "jsonl",
    pictures: Sequence[str] | None = None,
    size: int | None = None,
    resampling: Resampling = "bilinear",
    stretch: Stretch = "fixed",
    percentiles: tuple[float, float] = (2.0, 98.0),
    flip: Flip | None = None,
    without_answers: bool = False,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress | None = None,
) -> FilesReport:
    """Write the texts of BigEarthNet.txt about the patches, and the pictures that they are about.

    Patches without a text are left out. ``jsonl``: ``texts-SPLIT.jsonl``, a record per line; ``llava``:
    ``texts-SPLIT.json``, a list of conversations; SPLIT is that of the text, ``bench`` too. Paths of pictures
    are relative to the folder. Boxes and points are in pixels of the pictures, and flipped with them. What a
    flip would make false (texts about where things are, captions) is left out, and so is what cannot be taken
    apart; the manifest counts both.

    Pictures, and the rest, are as with `export_png`.

    Args:
        selection: Whose texts.
        path: The new folder, or an earlier export of the same root.
        texts: ``BigEarthNet.txt.parquet``, or a part of it with the same columns, on this machine.
        form: How texts are written.
        pictures: As with `export_png`; all of one size.
        size: Pixels a side.
        resampling: How pictures get that size.
        stretch: What is black and what is brightest.
        percentiles: Which ones.
        flip: Mirror pictures, boxes and points.
        without_answers: Hide the country, season and climate zone that captions name and questions ask for.
        update: Add what an existing export lacks.
        prune: Drop what is not selected from an existing export.
        threads: Patches are fetched and drawn by so many threads, at least 1.
        progress: Wraps the iterable of finished parts.

    Raises:
        NotFoundError: If nothing is selected, or no selected patch has a text.
        SourceError: If the file of texts lacks a column.
        ChecksumError: If it is damaged, or the dataset is.
        ValueError: If an option is out of bounds, or pictures have several sizes.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
    """
    options = PictureOptions(
        pictures=None if pictures is None else tuple([pictures] if isinstance(pictures, str) else pictures),
        size=size,
        resampling=resampling,
        stretch=stretch,
        percentiles=percentiles,
        flip=flip,
    )
    table = TextTable(local_path(texts, "the file of texts"), with_answers=without_answers)
    maker = TextMaker(selection.dataset.schema, options, table, form=form, without_answers=without_answers)
    selection.require_patches("nothing to export")
    selection.refuse_repeats("an export")
    return export_files(
        table.restrict(selection), path, maker, update=update, prune=prune, threads=threads, progress=progress
    )


class TextMaker:
    """Makes the pictures of patches, and in the end the files of texts.

    Args:
        schema: Of the dataset.
        options: Of the pictures.
        texts: The texts.
        form: How they are written.
        without_answers: Hide what captions give away.

    Raises:
        ValueError: If the form is unknown, or the pictures have several sizes.
    """

    def __init__(
        self, schema: Schema, options: PictureOptions, texts: TextTable, *, form: Form, without_answers: bool
    ) -> None:
        if form not in ("jsonl", "llava"):
            raise ValueError(f"form must be jsonl or llava, got {form!r}")
        self.kind = form
        """Form of the export."""
        self._pictures = PictureMaker(schema, options)
        self._texts, self._identity, self._without_answers = texts, texts.identity, without_answers
        sizes = {recipe.name: recipe.size_px for recipe in self._pictures.recipes}
        if options.size is None and len(set(sizes.values())) > 1:
            each = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"boxes are in pixels of one size, and these pictures have several ({each}): give a size"
            )
        self._size = options.size or next(iter(sizes.values()))
        self._products: dict[str, str] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the pictures are made of."""
        return self._pictures.modalities

    @property
    def settings(self) -> dict[str, Any]:
        """The pictures' settings, the file of texts and the templates, as JSON has them."""
        template = {"templates": dict(TEMPLATES)} if self.kind == "llava" else {}
        return {
            **self._pictures.settings,
            **template,
            "size": self._size,
            "boxes": "pixels",
            "texts": self._identity,
            "without_answers": self._without_answers,
        }

    def start(self, chosen: Selection) -> None:
        """Keep which product each patch is of."""
        table = chosen.columns([layout.ID, layout.PRODUCT])
        ids, products = (table.column(name).cast(pa.string()).to_pylist() for name in table.column_names)
        self._products = dict(zip(ids, products, strict=True))

    def survey(self, each_patch: EachPatch) -> dict[str, Any]:
        """What the pictures need."""
        return self._pictures.survey(each_patch)

    def make(self, patch: PatchPixels, survey: Mapping[str, Any]) -> dict[str, bytes]:
        """The pictures of a patch."""
        return self._pictures.make(patch, survey)

    def finish(self, partial: Path, progress: Progress) -> dict[str, Any]:
        """Write the files of texts and legends."""
        self._pictures.finish(partial, progress)
        left_out: Counter[str] = Counter()
        num_texts = 0
        with ExitStack() as stack:
            files: dict[str, _TextFile] = {}
            groups = progress(self._texts.groups(list(self._products)), self._texts.num_groups, "write texts")
            for row in itertools.chain.from_iterable(groups):
                record = self._record(row, left_out)
                if record is None:
                    continue
                split = str(row["split"])
                if split not in files:
                    files[split] = stack.enter_context(_TextFile(partial, split, self.kind))
                files[split].write(record)
                num_texts += 1
        for reason, count in left_out.items():
            logger.warning("%s: %s texts are left out: %s", partial.parent, f"{count:,}", reason)
        return {"num_texts": num_texts, "left_out": dict(sorted(left_out.items()))}

    def _record(self, row: Mapping[str, Any], left_out: Counter[str]) -> dict[str, Any] | None:
        """The record of a text; None if it is left out."""
        flip, kind = self._pictures.options.flip, row["type"]
        if flip and (kind == "captioning" or str(row["category"]).startswith("relative")):
            left_out["a flip makes texts about where things are false"] += 1
            return None
        try:
            parts = self._parts(row)
        except TextError:
            left_out[f"a {kind} that is not written as one"] += 1
            return None
        patch = row["patch_id"]
        paths = {
            recipe.name: f"{recipe.name}/{self._products[patch]}/{patch}.png"
            for recipe in self._pictures.recipes
        }
        if self.kind == "jsonl":
            return {
                "id": row["ID"],
                "patch_id": patch,
                **{name: row[name] for name in ("split", "type", "category")},
                "images": paths,
                "size": self._size,
                **parts,
            }
        return {
            "id": str(row["ID"]),
            "image": next(iter(paths.values())) if len(paths) == 1 else list(paths.values()),
            "conversations": self._conversation(kind, parts, len(paths)),
        }

    def _parts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a text consists of, boxes and points in pixels of the picture, flipped with it.

        Raises:
            TextError: If it is not written as one of its type.
        """
        question, answer, flip = str(row["input"]), str(row["output"]), self._pictures.options.flip
        found: dict[str, Any] = {}
        if (reference := parse_reference(question)) is not None:
            found["reference"] = reference
        if (point := parse_point(question)) is not None:
            x, y = point.flipped(flip).to_pixels(self._size)
            found["point"] = [x, y]
            question = replace_point(question, f"<point>({x}, {y})</point>")
        if row["type"] == "mcq":
            choice = parse_choice(question)
            letter = answer.strip().rstrip(").").lower()
            if letter not in choice.options:
                raise TextError(f"{answer!r} is not one of the options of {choice}")
            found |= {"question": choice.question, "options": dict(choice.options), "answer": letter}
            return found
        if row["type"] == "bounding box":
            box = list(parse_box(answer).flipped(flip).to_pixels(self._size))
            return {**found, "question": question, "answer": json.dumps(box), "box": box}
        if row["type"] == "captioning" and self._without_answers:
            answer = hide_answers(answer, **{name: str(row[name]) for name in ANSWER_COLUMNS})
        return {**found, "question": question, "answer": answer}

    def _conversation(self, kind: str, parts: Mapping[str, Any], num_images: int) -> list[dict[str, str]]:
        options = "\n".join(f"{letter}) {text}" for letter, text in parts.get("options", {}).items())
        template = TEMPLATES.get(kind, "{question}")
        asked = template.format(question=parts["question"], options=options, size=self._size)
        return [
            {"from": "human", "value": "<image>\n" * num_images + asked},
            {"from": "gpt", "value": parts["answer"]},
        ]


class _TextFile:
    """A file of records: one per line, or one JSON list."""

    def __init__(self, folder: Path, split: str, form: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", split):
            raise SourceError(f"{split!r} is not the name of a split of texts, such as train or bench")
        self._is_list = form == "llava"
        self._path = folder / f"texts-{split}.{'json' if self._is_list else 'jsonl'}"
        self._file: TextIO | None = None
        self._is_empty = True

    def __enter__(self) -> _TextFile:
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        assert self._file is not None
        before = ("[\n" if self._is_empty else ",\n") if self._is_list else ""
        self._file.write(before + json.dumps(record, ensure_ascii=False) + ("" if self._is_list else "\n"))
        self._is_empty = False

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            if self._is_list:
                self._file.write("\n]\n")
            self._file.close()
