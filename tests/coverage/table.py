"""Measured rows <-> measured/*.json -> docs/coverage.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "coverage.md"
CLAIMS = ("found", "gate", "importance", "removable")
INTRODUCTION = """# Coverage: which models of transformers this works on

Every model type that transformers knows is built tiny from its own configuration, with random weights, and put to
the same test. This page is written by that test (`make coverage`), and a part of it runs in the test suite.

| column | what is proved |
|---|---|
| found | `find_heads` reads attention heads from the model; attention that it cannot read is left out by name |
| gate | a masked head equals, in the model's outputs, a head whose columns of W_O's weight are zero, and a head whose \
attention probabilities are zero in the softmax itself (eager attention); to 1e-6 of the largest output, 1e-5 where a \
model runs in float32 only |
| importance | I(h) of each example equals five-point finite differences of its loss over W_O's weight, along random \
directions over all heads at once; to 0.5% of the slope (2% in float32), since many models compute norms in float32 |
| removable | `hd.prune` takes three tenths of the heads out, and the smaller model computes what the masked one does |

The model is the family's base model where that runs on generated inputs, else one with a head. A model type is a name
in transformers' own list of configurations; one folder of its source can hold several (a text and a vision tower).
`-` means that a claim was not put to the test, because one before it failed or the model could not be built.
"""


def read(version: str) -> list[dict[str, Any]]:
    """The rows measured with one version of transformers."""
    return json.loads(_path(version).read_text()) if _path(version).exists() else []


def write(version: str, rows: list[dict[str, Any]]) -> None:
    """Keep the rows of a version, one a line, and draw the page from all versions."""
    _path(version).parent.mkdir(exist_ok=True)
    _path(version).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    DOCS.write_text(page())


def versions() -> list[str]:
    """Versions of transformers that were measured, the newest first."""
    found = [path.stem.removeprefix("transformers-") for path in (HERE / "measured").glob("transformers-*.json")]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def page() -> str:
    """docs/coverage.md, whole."""
    measured = {version: read(version) for version in versions()}
    lines = [
        INTRODUCTION,
        "| transformers | model types | built tiny | found | gate-exact | importance-exact | removable |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for version, rows in measured.items():
        counts = [_count(rows, claim) for claim in CLAIMS]
        built = [row for row in rows if row["model"] != "-"]
        lines.append(f"| {version} | {_folders(rows)} | {_folders(built)} | {' | '.join(counts)} |")
    lines += ["", "Numbers are model types, and in brackets the folders of transformers that they come from.", ""]
    for version, rows in measured.items():
        lines += _section(version, rows)
    return "\n".join(lines) + "\n"


def _section(version: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"## transformers {version}", "", "| model type | model | heads | " + " | ".join(CLAIMS) + " | remarks |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if row["model"] != "-":
            claims = " | ".join(row[claim] for claim in CLAIMS)
            lines.append(f"| {row['family']} | {row['model']} | {row['heads']} | {claims} | {_text(row['reason'])} |")
    lines += ["", f"### Not built, transformers {version}", "", "| model type | reason |", "|---|---|"]
    lines += [f"| {row['family']} | {_text(row['reason'])} |" for row in rows if row["model"] == "-"]
    return [*lines, ""]


def _count(rows: list[dict[str, Any]], claim: str) -> str:
    return _folders([row for row in rows if row[claim] == "yes"])


def _folders(rows: list[dict[str, Any]]) -> str:
    return f"{len(rows)} ({len({row['folder'] for row in rows})})"


def _text(reason: str) -> str:
    return reason.removeprefix("not built: ").replace("|", "\\|")


def _path(version: str) -> Path:
    return HERE / "measured" / f"transformers-{version}.json"
