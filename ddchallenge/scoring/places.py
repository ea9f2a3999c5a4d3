"""Where scoring keeps what may be thrown away: compiled steps and checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["kept_folder"]


def kept_folder(name: str) -> Path:
    """``name`` in the folder ``DDCHALLENGE_CACHE`` names, else in the user's cache folder.

    It need not exist, and may be deleted while nothing is being scored.
    """
    chosen = os.environ.get("DDCHALLENGE_CACHE")
    if chosen:
        return Path(chosen).expanduser() / name
    import platformdirs

    return platformdirs.user_cache_path("ddchallenge", appauthor=False) / name
