"""Text of user code, made fit to be stored: bounded, and without what UTF-8 cannot say (surrogates of file names)."""

from __future__ import annotations


def cut(text: str, characters_max: int) -> str:
    """The beginning of ``text``."""
    return storable(text if len(text) <= characters_max else text[: characters_max - 1] + "…")


def cut_front(text: str, characters_max: int) -> str:
    """The end of ``text``."""
    return storable(text if len(text) <= characters_max else "…" + text[1 - characters_max :])


def storable(text: str) -> str:
    """``text`` with question marks in place of lone surrogates."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
