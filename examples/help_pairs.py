"""Sentence pairs from LibreOffice's help: the same HTML pages in each language, paragraphs sharing their ids."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from tqdm import tqdm

BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "td", "th"}
PARAGRAPH_ID = re.compile(r"(par|hd)_")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"“„«(]?[A-ZÄÖÜÉÈÀ])")
PARTS = 25  # pages fall into 25 equal parts by hash: one for validation, one for the test, the rest for training


class Paragraphs(HTMLParser):
    """Collects `{paragraph id: text}` from one page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, str] = {}
        self._id: str | None = None
        self._tag = ""
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a paragraph where a block with a paragraph id begins."""
        name = dict(attrs).get("id") or ""
        if tag in BLOCKS and PARAGRAPH_ID.match(name):
            self.end_paragraph()
            self._id, self._tag, self._text = name, tag, []
        elif tag == "br":
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        """Close the paragraph with the block that opened it."""
        if tag == self._tag:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        """Keep the text inside a paragraph."""
        self._text.append(data)

    def end_paragraph(self) -> None:
        """Keep what the open paragraph, if any, has gathered."""
        text = " ".join("".join(self._text).split())
        if self._id and text:
            self.found.setdefault(self._id, text)
        self._id, self._text = None, []


def paragraphs(page: Path) -> dict[str, str]:
    """`{paragraph id: text}` of one HTML page."""
    parser = Paragraphs()
    parser.feed(page.read_text(encoding="utf-8", errors="replace"))
    parser.end_paragraph()
    return parser.found


def sentences(source: str, target: str) -> Iterator[tuple[str, str]]:
    """The pair sentence by sentence where both sides split alike, else the paragraphs whole."""
    sources, targets = SENTENCE_END.split(source), SENTENCE_END.split(target)
    if len(sources) != len(targets):
        sources, targets = [source], [target]
    yield from zip(sources, targets, strict=True)


def usable(source: str, target: str) -> bool:
    """Whether a pair is a translation of prose: not code, not left untranslated, of similar length, not garbled."""
    return (
        source != target
        and all(2 <= len(text.split()) <= 80 for text in (source, target))
        and 1 / 2.5 <= len(source) / len(target) <= 2.5
        and sum(map(str.isalpha, source)) >= 0.6 * len(source)
        and not any("<?>" in text for text in (source, target))  # a placeholder the help's own build failed to fill
    )


def split_of(page: str) -> str:
    """train, valid or test: a page falls whole into one of them, by the hash of its path."""
    part = int(hashlib.md5(page.encode()).hexdigest(), 16) % PARTS
    return {0: "valid", 1: "test"}.get(part, "train")


def aligned(root: Path, source: str, target: str) -> list[tuple[str, str, str]]:
    """Distinct `(split, source sentence, target sentence)` from the folders `root/source` and `root/target`.

    A source sentence that appears on several pages is kept once, with the first page's split, so that no test
    sentence was seen in training.
    """
    rows: dict[str, tuple[str, str]] = {}
    for page in tqdm(sorted((root / source).rglob("*.html")), desc="[data] reading pages", unit="page", disable=None):
        name = page.relative_to(root / source).as_posix()
        twin = root / target / name
        if not twin.exists():
            continue
        translated = paragraphs(twin)
        for key, text in paragraphs(page).items():
            for first, second in sentences(text, translated.get(key, text)):
                if usable(first, second):
                    rows.setdefault(first, (split_of(name), second))
    ordered = [(split, first, second) for first, (split, second) in sorted(rows.items())]
    random.Random(1).shuffle(ordered)
    return ordered


def write_pairs(root: Path, source: str, target: str, folder: Path, codes: tuple[str, str]) -> Counter[str]:
    """Write `folder/{train,valid,test}.{code}`, one sentence a line; return the number of pairs in each."""
    rows = aligned(root, source, target)
    for split in ("train", "valid", "test"):
        for column, code in enumerate(codes, start=1):
            lines = [row[column] + "\n" for row in rows if row[0] == split]
            (folder / f"{split}.{code}").write_text("".join(lines), encoding="utf-8")
    return Counter(row[0] for row in rows)
