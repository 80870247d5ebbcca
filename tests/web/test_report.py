"""`headdynamics report` in a real browser: one file, no network, every panel and every table."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import looks
import numpy as np
import pytest
from browser import SCREENSHOTS, all_of, chromium, complaints, hosts, missing, one
from headdynamics.analysis.assets import plotly_script
from headdynamics.analysis.load import load_run
from headdynamics.analysis.panels import panels
from headdynamics.analysis.report import MOST
from headdynamics.analysis.report import report as html
from runs import a_run, a_snapshot

from headdynamics.record.hdf5 import HDF5Recorder

SPEEDS = {
    "model": "Tiny", "pruned_heads": 18, "heads": 36, "largest_difference_from_masked": 1e-6,
    "weights": {"whole": {"parameters": 2000, "bytes": 8000}, "pruned": {"parameters": 1500, "bytes": 6000}},
    "peak_bytes_while_running_largest_batch": {"whole": 3e6, "masked": 4e6, "pruned": 2e6},
    "speed": [{"batch": 4, "bound": 1.3, "whole": {"examples_per_second": 10.0, "speedup": 1.0, "spread": [1, 1]},
               "masked": {"speedup": 0.9, "spread": [0.8, 1]}, "pruned": {"speedup": 1.25, "spread": [1.2, 1.3]}}],
}  # fmt: skip
HOSTILE = "</script><img src=x onerror=window.hacked=1>"


def write(path, updates, seed=0, ablated=None, **more):
    recorder = HDF5Recorder(path)
    recorder.start(looks.run(**more), None)
    for update in updates:
        found = {"ablations": {"one": looks.ablation()}} if update == ablated else {}
        recorder.write(looks.snapshot(update, seed, **found))
    recorder.close()
    return path


def report(*words):
    command = [sys.executable, "-m", "headdynamics", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    first = write(folder / "first.h5", range(100, 1300, 100), ablated=1100)  # not the last: it is found all the same
    second = write(folder / "second.h5", range(100, 1300, 100), 1, model=HOSTILE, metric=HOSTILE)
    (folder / "speeds.json").write_text(json.dumps([SPEEDS]))
    done = report(first, second, "-o", folder / "report.html", "--speeds", folder / "speeds.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    return folder / "report.html"


def test_eight_large_runs_stay_small(tmp_path):
    """1,024 heads, 100 snapshots each: what is drawn of each, beside plotly and 20 kB of tables."""
    recorder = HDF5Recorder(tmp_path / "run.h5")
    recorder.start(a_run(1024), None)
    draw = np.random.default_rng(0)
    for update in range(1, 101):
        taken, mean = a_snapshot(update, 1024), draw.random(1024)
        measured = dataclasses.replace(taken.importance, mean=mean, stderr=mean / 7)
        recorder.write(dataclasses.replace(taken, importance=measured))
    recorder.close()
    drawn = json.dumps(panels(load_run(tmp_path / "run.h5"), "run", MOST // 8), separators=(",", ":"))
    assert plotly_script().stat().st_size + 8 * (len(drawn) + 20_000) < 6e6


def test_one_small_file_with_every_table(page):
    assert page.stat().st_size < 6e6
    text = page.read_text(encoding="utf-8")
    for told in (
        "Head importance settled at epoch 4", "McNemar", "Importance I(h) of each head", "18 of 36 heads taken out",
        "1.25x (1.20 to 1.30)", "b" * 64, "first against second", "first: the numbers",
    ):  # fmt: skip
        assert told in text, told
    assert "<img" not in text and text.count("</script>") == 3


def test_long_runs_still_fit(page):
    short = load_run(page.with_name("first.h5"))
    often = {"snapshot": np.tile(np.arange(12), 60)}
    longer = {name: data.isel(often) for name, data in vars(short).items() if "snapshot" in getattr(data, "dims", ())}
    text = html([dataclasses.replace(short, path=Path(name), **longer) for name in ("a", "b")])
    assert len(text.encode()) < 6e6
    for run in json.loads(re.search(r'id="runs">(.*?)</script>', text)[1]):
        assert run["snapshots"]["count"] == 720 > len(run["time"]["update"]) > 100
        assert (run["time"]["update"][0], run["time"]["update"][-1]) == (100, 1200)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_it_opens_from_disk_draws_and_prints(page, tmp_path):
    with chromium(tmp_path) as driver:
        driver.get(page.as_uri())
        assert len(all_of(driver, "#board section .main-svg")) >= 4
        assert len(all_of(driver, "#heads .heatmaplayer image")) == 6
        driver.save_screenshot(str(SCREENSHOTS / "report.png"))
        wide = one(driver, "#curves .main-svg").size["width"]
        pdf = base64.b64decode(driver.print_page())
        assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 3
        assert one(driver, "#curves .main-svg").size["width"] == wide  # on the screen as before
        assert driver.execute_script("return window.hacked") is None and not all_of(driver, "img")
        driver.execute_script(
            "const s = document.createElement('script'); s.text = 'window.hacked = 2'; document.body.append(s)"
        )
        assert driver.execute_script("return window.hacked") is None  # the page's own policy
        assert [c for c in complaints(driver) if "Content Security Policy" not in c] == []
        assert hosts(driver) == set()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.h5"], "missing.h5"),
        (["first.h5", "-o", "report.pdf"], "should end in .html"),
        (["first.h5", "--speeds", "wrong.json"], "wrong.json"),
    ],
)
def test_what_cannot_be_reported_is_one_line(page, words, told):
    (page.parent / "wrong.json").write_text("[{}]")
    placed = [page.parent / word if "." in word else word for word in words]
    done = report(*placed)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert told in done.stderr and "Traceback" not in done.stderr
