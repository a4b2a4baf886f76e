"""Clean texts from the web: unescape entities, mask handles and remove addresses."""

import html
import re
from collections.abc import Sequence

_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
_HANDLE = re.compile(r"(?<![\w@])@\w+")
_WIKITEXT_JOINT = re.compile(r" @([-,.])@ ")
_BLANKS = re.compile(r"\s+")


def clean(text: str) -> str:
    """The text with HTML entities unescaped, `@user` for handles, without addresses."""
    return _clean_piece(text).strip()


def clean_with_spans(
    text: str, offsets: Sequence[int]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The cleaned text, and the ranges in it of the characters at `offsets`."""
    cleaned, spans, end = "", [], 0
    for first, last in _ranges(offsets):
        cleaned += _clean_piece(text[end:first])
        start = len(cleaned)
        cleaned += _clean_piece(text[first:last])
        spans.append((start, len(cleaned)))
        end = last
    cleaned += _clean_piece(text[end:])
    shift = len(cleaned) - len(cleaned.lstrip())
    cleaned = cleaned.strip()
    moved = [
        (max(start - shift, 0), min(stop - shift, len(cleaned)))
        for start, stop in spans
    ]
    return cleaned, tuple((start, stop) for start, stop in moved if start < stop)


def _ranges(offsets: Sequence[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for offset in sorted(set(offsets)):
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
    return ranges


def _clean_piece(text: str) -> str:
    text = html.unescape(html.unescape(text))
    text = _WIKITEXT_JOINT.sub(r"\1", text)
    text = _HANDLE.sub("@user", _ADDRESS.sub("", text))
    return _BLANKS.sub(" ", text)
