"""Sizes as people write and read them: 50GB."""

from __future__ import annotations

import re

_PREFIXES = ("", "k", "M", "G", "T", "P")
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)


def parse(text: str) -> int:
    """Return the bytes that `text` means: `50GB` and `50G` are 50 * 10**9, `50GiB` is 50 * 2**30, `5000` is 5000.

    Raises:
        ValueError: it means nothing.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    number, prefix, binary = match.groups()
    power = [known.lower() for known in _PREFIXES].index(prefix.lower())
    return int(float(number) * (1024 if binary else 1000) ** power)


def in_words(size: int) -> str:
    """Return `size` bytes in the unit that needs at most three digits before the point."""
    power = 0
    while size >= 999.95 * 1000**power and power < len(_PREFIXES) - 1:
        power += 1
    return f"{size / 1000**power:.1f} {_PREFIXES[power]}B" if power else f"{size} B"
