"""`SealedDocument`: a JSON document that carries its own digest, as a frozen value that is read with distrust."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from reben_cloud.errors import RebenError
from reben_cloud.root.digest import DIGEST, is_intact, sealed
from reben_cloud.root.manifest_checks import InvalidManifestError, is_int


@dataclass(frozen=True, eq=False, repr=False)
class SealedDocument(Mapping[str, Any]):
    """A document whose keys can be asked for, and which a class of its kind gives attributes with types.

    It is a mapping over its JSON form, so that what stands in the file can be looked up without knowing the class.
    What is looked up is a copy: nothing changes a document. Two are equal when they say the same.

    Args:
        document: The JSON form.

    Raises:
        InvalidManifestError: If a key is missing or wrong, or two contradict each other.
    """

    _document: Mapping[str, Any]

    FORMAT: ClassVar[str]
    """Names the kind of document."""
    VERSION: ClassVar[int]
    """Version of that kind which is written, and the highest one that is read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_document", copy.deepcopy(dict(self._document)))
        self._check()

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._document[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._document)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._document)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._document!r})"

    @classmethod
    def from_bytes(cls, text: bytes | memoryview, *, where: str) -> Self:
        """A stored document, checked.

        Args:
            text: What was read.
            where: Where it lies, for the message about its version.

        Raises:
            InvalidManifestError: If it is damaged or not of this kind; says what is wrong with it.
            RebenError: If a newer version has written it.
        """
        try:
            document = json.loads(bytes(text))
        except ValueError as error:
            raise InvalidManifestError(f"it is not JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != cls.FORMAT:
            raise InvalidManifestError(f"its format is not {cls.FORMAT!r}")
        version, damaged = document.get("version"), DIGEST in document and not is_intact(document)
        if is_int(version, cls.VERSION + 1):
            # Said before anything else: a newer version may take its digest of other things.
            hint = ", or copy it again if nothing newer made it: it does not have its own digest" * damaged
            raise RebenError(
                f"{where} has format version {version}, this reben_cloud reads up to {cls.VERSION}; "
                f"upgrade it{hint}"
            )
        if damaged:
            raise InvalidManifestError("it does not have its own digest")
        found = cls(document)
        found._check_stored()
        return found

    def to_bytes(self) -> bytes:
        """The document as it is stored, sealed with its digest."""
        return json.dumps(sealed(self._document), indent=2).encode()

    def to_json(self) -> dict[str, Any]:
        """A copy of the JSON form."""
        return copy.deepcopy(dict(self._document))

    @property
    def version(self) -> int:
        """Version of the format, in [1, `VERSION`]."""
        return int(self._document["version"])

    @property
    def has_digest(self) -> bool:
        """Whether it carries its own digest; the first version's do not."""
        return DIGEST in self._document

    @abstractmethod
    def _check(self) -> None:
        """See that each key is one of this kind of document, and that they agree."""

    def _check_stored(self) -> None:
        """See to what a stored document has, and one before that may lack."""
