"""Names that systems, tools and file servers leave in folders: never a part of any data.

One rule for every source: folders, archives, LMDBs, scenes. It judges names below the folder that was given, never
the path to it: a source may itself be below a hidden folder.
"""

from __future__ import annotations

from pathlib import Path

_NAMES = frozenset(
    {
        "__macosx",  # zip files made by macOS
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",  # Windows
        "icon\r",  # macOS, of a folder with a picture of its own
        "@eadir", "@recycle", "#recycle", "#snapshot", "@tmp",  # Synology and QNAP servers
        "lost+found",  # ext file systems
        "__pycache__",
    }
)  # fmt: skip


def is_clutter(name: str) -> bool:
    """Whether the name of a file or folder is one that no data has.

    True for hidden names (``.DS_Store``, AppleDouble's ``._x``, ``.nfs000…``, ``.ipynb_checkpoints``) and for what
    macOS, Windows and file servers add (``__MACOSX``, ``Thumbs.db``, ``desktop.ini``, ``@eaDir``, ``lost+found``).

    Args:
        name: One component of a path, not ``.`` or ``..``.
    """
    return name.startswith(".") or name.lower() in _NAMES


def glob_data(folder: Path, pattern: str) -> list[Path]:
    """What `Path.glob` finds below a folder that is not clutter, nor inside of it; sorted."""
    return sorted(
        path for path in folder.glob(pattern) if not any(map(is_clutter, path.relative_to(folder).parts))
    )
