"""What nobody means to hand in: keys, tokens, files that hold them.

By name, whatever is in it; by content, whatever it is called. A find is a question and not proof:
``--allow`` answers it. What was found is never shown, only where.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

__all__ = ["SecretFinder", "secret_name"]

_NAMES: Final = (
    ".env",
    ".env.*",
    "*.env",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.kdbx",
    "*.keystore",
    "credentials",
    "credentials.*",
    ".credentials*",
    "client_secret*",
    "secrets.*",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    ".htpasswd",
    "kaggle.json",
    "token",
    "token.txt",
    "*_token",
    "*.token",
    "api_key*",
    "apikey*",
)

# Shapes their makers publish so that they can be found; {…} and <…> are placeholders of examples.
_SHAPES: Final = {
    "a private key": rb"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,60}\b",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20,}",
    "an AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "an API key": rb"\bsk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20,}",
    "a PyPI token": rb"\bpypi-AgE[A-Za-z0-9_-]{50,}",
    "a password in an address": rb"://[^\s/:@'\"{}<>$]{1,100}:[^\s/@'\"{}<>$]{3,100}@[A-Za-z0-9]",
}
_SECRET: Final = re.compile(b"|".join(b"(%b)" % shape for shape in _SHAPES.values()))
_KINDS: Final = tuple(_SHAPES)
_LONGEST: Final = 512  # bytes; more than any shape needs to match


def secret_name(path: str) -> bool:
    """Whether a file is called like those that hold secrets."""
    name = PurePosixPath(path).name.casefold()
    return any(fnmatchcase(name, pattern) for pattern in _NAMES)


class SecretFinder:
    """Looks through a content fed in pieces, holding no more than one piece and a little."""

    def __init__(self) -> None:
        self.found: str | None = None  # such as "a private key in line 3"
        self._line = 1
        self._tail = b""

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        if self.found is not None:
            return
        held = self._tail + piece
        if match := _SECRET.search(held):
            line = self._line + held.count(b"\n", 0, match.start())
            self.found = f"{_KINDS[(match.lastindex or 1) - 1]} in line {line}"
        cut = max(0, len(held) - _LONGEST)
        self._line += held.count(b"\n", 0, cut)
        self._tail = held[cut:]
