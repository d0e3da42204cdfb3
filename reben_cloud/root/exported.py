"""`ExportManifest`: what an export says of itself (``export.json``).

It is the manifest of the root that the export came from, from which the order of streaming follows,
and beside it what the export has of that root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_args

from reben_cloud.formats.parquet import Seal
from reben_cloud.root.digest import sealed
from reben_cloud.root.layer_manifest import Kind, is_layer_name
from reben_cloud.root.manifest import FORMAT_VERSION, Manifest
from reben_cloud.root.manifest_checks import (
    InvalidManifestError,
    check_entries,
    check_groups,
    is_hex,
    is_int,
)
from reben_cloud.schema import Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedLayer:
    """A layer that stood beside the root when it was exported, and is in the export."""

    kind: Kind
    """What kind of layer it is: of an array layer the payloads are there, of a table what the patches' rows say."""
    title: str
    """What it is, for people."""
    digest: str
    """Digest of the layer's own document, which names all that it holds."""
    coverage: int
    """Patches of the export that it has anything for."""


class ExportManifest(Manifest):
    """What an export says of itself; the rest is as in `Manifest`.

    Patches, products and modalities are those of the export. Groups, countries, order and fingerprint are those of the
    root.
    """

    FORMAT: ClassVar[str] = "reben_cloud export"

    @classmethod
    def of_root(
        cls,
        root: Manifest,
        *,
        kind: str,
        settings: Mapping[str, object],
        identity: str,
        nbytes: int,
        modalities: Sequence[str],
        num_patches: int,
        products: Sequence[str],
        exported_groups: Mapping[str, int],
        patches: Seal,
        files: Mapping[str, tuple[int, str]],
        more: Mapping[str, object],
        schema: Schema | None = None,
        layers: Mapping[str, ExportedLayer] | None = None,
    ) -> ExportManifest:
        """What an export of a root, or of another export of it, is to say of itself; see the attributes.

        `more` is what else its form says: `num_files` and `num_texts`, and what only people read. `schema` is that of
        the dataset where layers add to the root's.
        """
        schema = (schema or root.schema).only(modalities)
        facts = {
            "kind": kind,
            "modalities": list(schema.modality_names),
            "settings": dict(settings),
            "identity": identity,
            "nbytes": nbytes,
            "format": cls.FORMAT,
            "version": FORMAT_VERSION,
            "metadata": root.metadata_columns,
            "schema": schema.to_json(),
            "num_patches": num_patches,
            "products": list(products),
            "exported_groups": dict(exported_groups),
            "patches_parquet": patches.to_json(),
            "files": {name: list(facts) for name, facts in files.items()},
            **({"layers": {name: asdict(one) for name, one in layers.items()}} if layers else {}),
            **more,
        }
        # An export has its payloads, wherever the root's lie; which layers it has is said above.
        document = {key: value for key, value in root.items() if key not in ("references", "layers")}
        return cls(sealed({**document, **facts}))

    @property
    def kind(self) -> str:
        """Form of the export: ``lmdb``, ``safetensors``, ``geotiff``, ``png``, ``jsonl`` or ``llava``."""
        return str(self._document["kind"])

    @property
    def settings(self) -> dict[str, Any]:
        """Options of that form."""
        return dict(self._document["settings"])

    @property
    def identity(self) -> str:
        """Names what the folder holds, 64 hex digits: the same name, the same bytes."""
        return str(self._document["identity"])

    @property
    def nbytes(self) -> int:
        """Size of the payloads' files in bytes."""
        return int(self._document["nbytes"])

    @property
    def exported_groups(self) -> dict[str, int]:
        """Patches of each shard group of the root that are here."""
        return dict(self._document["exported_groups"])

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Each file by name: size in bytes, and its xxh3 (of a large file, of parts of it), 16 hex digits.

        Files of single patches are not among them, but the table that lists them.
        """
        return {name: (nbytes, xxh3) for name, (nbytes, xxh3) in self._document["files"].items()}

    @property
    def layers(self) -> dict[str, ExportedLayer]:
        """The layers that are in it, by name; a modality of that name is an array layer's."""
        return {name: ExportedLayer(**one) for name, one in self._document.get("layers", {}).items()}

    def layer_lines(self) -> Iterator[str]:
        """A line for people on each of them."""
        for name, one in self.layers.items():
            title = f", {one.title}" if one.title else ""
            yield f"{name}: {one.coverage:,} of {self.num_patches:,} patches{title}, in the export"

    @property
    def patches_per_file(self) -> int:
        """Patches in a file, but for the last; 0 where the form has no such files."""
        return int(self._document["settings"].get("patches_per_file", 0))

    @property
    def num_files(self) -> int | None:
        """Files made of single patches; None where the form has no such files."""
        return self._document.get("num_files")

    @property
    def num_texts(self) -> int | None:
        """Texts; None where the form has none."""
        return self._document.get("num_texts")

    def _check(self) -> None:
        document = self._document
        check_entries(document)
        check_groups(document)
        exported = document.get("exported_groups")
        if not isinstance(exported, dict) or not exported:
            raise InvalidManifestError(f"its exported_groups cannot be {exported!r:.80}")
        for name, count in exported.items():
            most = document["groups"].get(name, {}).get("num_samples", 0)
            if not is_int(count, 1) or count > most:
                raise InvalidManifestError(
                    f"its exported_groups say {count!r} of the {most:,} samples of {name}"
                )
        if sum(exported.values()) != self.num_patches:
            raise InvalidManifestError(
                f"its exported_groups are not the {self.num_patches:,} patches that it has"
            )
        files, settings = document.get("files"), document.get("settings")
        if not isinstance(files, dict) or not all(_is_file(value) for value in files.values()):
            raise InvalidManifestError("its files are not sizes and checksums")
        if not isinstance(settings, dict) or not is_hex(document.get("identity"), 64):
            raise InvalidManifestError("its settings or its identity are missing")
        if not is_int(document.get("nbytes"), 0) or not isinstance(document.get("kind"), str):
            raise InvalidManifestError("its kind or its nbytes are missing")
        if self.kind == "safetensors" and not is_int(settings.get("patches_per_file"), 1):
            raise InvalidManifestError(
                f"its patches_per_file cannot be {settings.get('patches_per_file')!r:.80}"
            )
        layers = document.get("layers", {})
        if not isinstance(layers, dict) or not all(
            is_layer_name(name) and _is_layer(one, self.num_patches) for name, one in layers.items()
        ):
            raise InvalidManifestError(f"its layers cannot be {layers!r:.80}")
        for key in ("num_files", "num_texts"):
            if key in document and not is_int(document[key], 0):
                raise InvalidManifestError(f"its {key} cannot be {document[key]!r:.80}")

    def _check_stored(self) -> None:
        """Nothing more: an export is made whole."""


def _is_layer(value: object, num_patches: int) -> bool:
    try:
        layer = ExportedLayer(**value)  # type: ignore[arg-type]  # anything that JSON has
    except TypeError:
        return False
    return (
        layer.kind in get_args(Kind)
        and isinstance(layer.title, str)
        and isinstance(layer.digest, str)
        and is_int(layer.coverage, 0)
        and layer.coverage <= num_patches
    )


def _is_file(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_int(value[0], 0) and is_hex(value[1], 16)
