"""mkdocs: pages outside docs/ belong to the site, and relative links lead there as they do in the repository.

The site's root is docs/; results/ and benchmarks/ stand below it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = (
    "results/README.md", "results/Makefile", "results/figures/*.png", "results/tables/*", "benchmarks/results.md",
    "examples/tutorial.ipynb",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands outside docs/."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links out of docs/ and into it, and no link to a folder: a site shows none."""
    markdown = re.sub(r"\[([\w/]+/)\]\([\w/]+\)", r"`\1`", markdown)
    if page.file.src_uri == "coverage.md":  # other libraries' error messages: ['a']['b'] is no link
        markdown = markdown.replace("][", "]\\[")
    outside = "/" in page.file.src_uri
    return markdown.replace("](../docs/", "](../") if outside else markdown.replace("](../", "](")
