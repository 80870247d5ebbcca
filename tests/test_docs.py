"""The documentation: its Python runs, it names what there is, and the site builds strictly and asks no other host."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import headdynamics as hd
from headdynamics.__main__ import main
from headdynamics.schema import ATTRIBUTES, AXES, FIELDS

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
RUN = ("start_fairseq", "start_loop", "start_hf", "recipes", "extending")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)


def blocks(page):
    """(language, text) of each block of code; text without the indentation of a list."""
    for indent, language, text in BLOCK.findall((DOCS / f"{page}.md").read_text()):
        yield language, re.sub(rf"^{indent}", "", text, flags=re.M)


def run(page):
    """Run the page's Python, in order, and its `headdynamics` commands on run files that exist by then."""
    names = {"__name__": page}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"docs/{page}.md", "exec"), names)
        for line in text.splitlines() if not language else ():
            words = line.partition("#")[0].split()
            if words[:1] == ["headdynamics"] and len(words) > 2 and Path(words[2]).exists():
                assert main(words[1:]) == 0, line
    return names


@pytest.mark.parametrize("page", RUN)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(page)
    if page == "start_fairseq":
        there, back = (Path(f"valid.{language}").read_text().splitlines() for language in ("xx", "yy"))
        assert len(there) == 100 and there == [line[::-1] for line in back]
    elif page in ("start_hf", "start_loop"):
        found = hd.load_run("run.h5")
        assert found.importance["mean"].shape == (6, 8) and not found.failures
        assert Path("run-curves.png" if page == "start_hf" else "report.html").exists()
        for language, text in blocks("file_format"):
            if language == "python":
                exec(compile(text, "docs/file_format.md", "exec"), {})
    elif page == "recipes":
        assert Path("heads.csv").exists()
        assert int(names["keep"].sum()) == names["knee"].heads - names["knee"].pruned
    else:
        situation = SimpleNamespace(heads=hd.find_heads(names["model"]), wanted=np.arange(8))
        assert names["entry"].make(situation, 0).tolist() == names["late_first"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_every_public_name_stands_in_the_api_reference():
    named = re.findall(r"heading: hd\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(hd.__all__)


def test_the_file_format_page_has_every_field():
    rows = re.findall(r"^\| `(\S+)` \| (?:(\w+) \| ([^|]*?) \| )?", (DOCS / "file_format.md").read_text(), re.M)
    found = {name: (dtype, axes) for name, dtype, axes in rows}
    assert {n: (f.dtype, ", ".join(f.axes)) for n, f in FIELDS.items()}.items() <= found.items()
    assert found.keys() == {*FIELDS, *AXES, *ATTRIBUTES}


class Asked(HTMLParser):
    """What a page loads."""

    def __init__(self):
        super().__init__()
        self.places, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "link" and attrs.get("rel") != "canonical":
            self.places.append(attrs.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video"):
            self.places.append(attrs.get("src") or "")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs")
def test_site_builds_strictly_and_asks_no_other_host(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = {path.relative_to(tmp_path / "site").as_posix(): path for path in tmp_path.glob("site/**/*.html")}
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} | {"results/index.html"} <= pages.keys()
    for name, path in pages.items():
        page = Asked()
        page.feed(path.read_text())
        assert page.places and not [place for place in page.places if re.match(r"(\w+:)?//", place)], name
    for sheet in tmp_path.glob("site/**/*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet
    reference = pages["api.html"].read_text()
    assert [name for name in hd.__all__ if f"hd.{name}" not in reference] == []
