"""The HEAD DYNAMICS tab in a real TensorBoard and a real browser."""

import csv
import json
import re
import shutil
from pathlib import Path

import looks
import numpy as np
import pytest
from browser import SCREENSHOTS, all_of, chromium, complaints, hosts, missing, one, tensorboard, until
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from torch.utils.tensorboard import SummaryWriter

from headdynamics.record.events import summary
from headdynamics.record.tensorboard import TensorBoardRecorder
from headdynamics.tags import RUN

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
UPDATES = list(range(100, 1300, 100))
PANELS = ("heads", "curves", "settling", "ranks")
DEMO = [Path(__file__).parents[2] / "runs" / name for name in ("translation", "sentiment")]
HOSTILE = "<img src=x onerror=window.hacked=1>"


def record(folder, updates, seed=0, **more):
    recorder = TensorBoardRecorder(folder / "headdynamics")
    recorder.start(looks.run(**more), None)
    for update in updates:
        recorder.write(looks.snapshot(update, seed))
    return recorder


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A browser that stands in the tab, with two runs: one finished, one that still writes."""
    folder = tmp_path_factory.mktemp("web")
    record(folder / "log/first", UPDATES).close()
    writing = record(folder / "log/second", UPDATES[:8], seed=1, metric=HOSTILE, model=HOSTILE)
    with tensorboard(folder / "log") as address, chromium(folder) as driver:
        driver.get(f"{address}/#headdynamics")
        frame = until(lambda: all_of(driver, "iframe"), 60)[0]
        driver.switch_to.frame(frame)
        until(lambda: drawn(driver, "ranks") == 2, 60)
        driver.writing, driver.folder, driver.asked = writing, folder, set()
        yield driver
        writing.close()
        assert driver.asked == {"localhost"}


@pytest.fixture(autouse=True)
def quiet(board):
    """After each test: nothing was said on the console, nothing was asked of another machine, nothing was run."""
    yield
    assert complaints(board) == []
    asked = hosts(board)
    assert asked <= {"localhost"}
    board.asked |= asked
    assert board.execute_script("return window.hacked") is None


def drawn(board, panel):
    """How many figures a panel shows."""
    return len(all_of(board, f"#{panel} .figures .main-svg:first-of-type"))


@pytest.mark.skipif(not all(run.is_dir() for run in DEMO), reason="no run of make demo is here")
def test_every_panel_draws_the_runs_of_the_demo(tmp_path):
    with tensorboard(DEMO[0].parent) as address, chromium(tmp_path) as driver:
        driver.get(f"{address}/#headdynamics")
        driver.switch_to.frame(until(lambda: all_of(driver, "iframe"), 60)[0])
        until(lambda: drawn(driver, "ranks") == 2, 60)
        all_of(driver, ".chosen input")[0].click()  # translation alone
        until(lambda: [drawn(driver, panel) for panel in PANELS] == [1, 1, 1, 1])
        driver.save_screenshot(str(SCREENSHOTS / "demo.png"))
        assert complaints(driver) == [] and hosts(driver) == {"localhost"}


def figure(board, panel, place=0):
    """What Plotly was given to draw."""
    found = board.execute_script(
        "const d = document.querySelector(`#${arguments[0]} .figures`).children[arguments[1]];"
        "return JSON.stringify({data: d.data, layout: d.layout});", panel, place,
    )  # fmt: skip
    return json.loads(found)


def choose(board, only):
    """Show the runs whose place is in `only`."""
    for place, box in enumerate(all_of(board, ".chosen input")):
        if box.is_selected() != (place in only):
            box.click()
    until(lambda: len(all_of(board, ".verdict")) == len(only) and drawn(board, "heads") == len(only))


def press(board, *keys):
    one(board, "h2").click()  # away from any control
    ActionChains(board).send_keys(*keys).perform()


def cells(board):
    return [np.array(trace["z"], float) for trace in figure(board, "heads")["data"]]


def test_every_panel_draws_one_run(board):
    choose(board, {0})
    board.save_screenshot(str(SCREENSHOTS / "dashboard.png"))
    assert len(all_of(board, "#heads .heatmaplayer image")) == 3  # as many heatmaps as kinds, side by side
    assert len(all_of(board, "#curves .scatterlayer .trace")) == len(UPDATES) + 3  # and a band of two, and its mean
    assert len(all_of(board, "#settling .scatterlayer .trace")) == 3  # C, r, where it settled
    assert len(all_of(board, "#ranks .scatterlayer .trace")) == 11  # ten heads before all others
    for stack, found in zip(np.split(looks.mean(1200), 3), cells(board), strict=True):
        np.testing.assert_allclose(found, stack.reshape(3, 4), rtol=1e-4)
    said = one(board, ".verdict").text
    assert "first" in said and "settled at epoch 4" in said
    assert "settled at epoch 4" in [trace["name"] for trace in figure(board, "settling")["data"]]


def test_the_slider_moves_and_plays(board):
    choose(board, {0})
    before = one(board, "#heads .heatmaplayer image").get_attribute("href")
    press(board, Keys.HOME)
    np.testing.assert_allclose(np.concatenate([c.ravel() for c in cells(board)]), looks.mean(100), rtol=1e-4)
    assert one(board, "#heads .heatmaplayer image").get_attribute("href") != before
    assert one(board, ".moment").text.startswith("epoch 1,")
    press(board, Keys.RIGHT)
    assert one(board, ".moment").text.startswith("epoch 2,")
    assert figure(board, "curves")["data"][-1]["name"] == "by I(h), epoch 2"
    line = figure(board, "settling")["layout"]["shapes"][1]
    assert (line["x0"], line["x1"]) == (2, 2)  # only the mark was moved, and it moved
    one(board, ".slider").send_keys(Keys.RIGHT)  # the slider's own keys
    assert one(board, ".moment").text.startswith("epoch 3,")
    press(board, " ")
    until(lambda: one(board, ".moment").text.startswith("epoch 5,"))
    press(board, " ")
    stopped = one(board, ".moment").text
    press(board, Keys.END)
    assert one(board, ".moment").text.startswith("epoch 12,") and stopped != one(board, ".moment").text
    press(board, Keys.LEFT)
    press(board, " ")  # from there to the end, where it stops by itself
    until(lambda: one(board, ".moment").text.startswith("epoch 12,"))
    until(lambda: one(board, ".play").get_attribute("aria-label") == "play")


def test_hover_tells_value_error_rank_and_when_it_settled(board):
    choose(board, {0})
    ActionChains(board).move_to_element(all_of(board, "#heads .nsewdrag")[1]).perform()
    text = until(lambda: [label.text for label in all_of(board, "#heads .hoverlayer .hovertext")])[0]
    assert re.search(r"I\(h\) \d[\d.e-]* ± \d[\d.e-]* \(standard error\)", text)
    assert "decoder 1." in text and "of 36" in text and "its place" in text


def test_colours_and_rankings_can_be_chosen_and_a_head_followed(board):
    choose(board, {0})
    for option in all_of(board, "select.colour option"):
        option.click()
        assert drawn(board, "heads") == 1
    assert figure(board, "heads")["layout"]["coloraxis"]["colorbar"]["title"]["text"].startswith("settled at")
    settled = np.concatenate([c.ravel() for c in cells(board)])
    assert np.nanmin(settled) >= 1 and np.nanmax(settled) <= 8
    all_of(board, "select.colour option")[0].click()
    all_of(board, "select.ranking option")[1].click()
    assert "within layers" in one(board, ".verdict").text
    all_of(board, "select.ranking option")[0].click()
    marked = len(figure(board, "heads")["layout"]["shapes"])
    all_of(board, "#heads .nsewdrag")[0].click()
    until(lambda: len(figure(board, "heads")["layout"]["shapes"]) == marked + 1)
    assert "encoder 1." in figure(board, "ranks")["data"][-1]["name"] or len(figure(board, "ranks")["data"]) == 11


def test_a_head_is_followed_and_left_by_its_name_with_the_keyboard_alone(board):
    choose(board, {0})
    marked, entry = len(figure(board, "heads")["layout"]["shapes"]), one(board, ".follow")
    assert len(all_of(board, "datalist option")) == 36
    entry.send_keys("decoder 2.7\n")  # there is none
    assert entry.get_attribute("value") == "decoder 2.7" and len(figure(board, "heads")["layout"]["shapes"]) == marked
    entry.clear()
    for shapes in (marked + 1, marked):
        entry.send_keys("decoder 2.3\n")
        until(lambda wanted=shapes: len(figure(board, "heads")["layout"]["shapes"]) == wanted)
        lines = [(trace.get("name"), trace["line"]["width"]) for trace in figure(board, "ranks")["data"]]
        assert (("decoder 2.3", 4) in lines) == (shapes > marked) and entry.get_attribute("value") == ""


def test_two_runs_overlaid_and_side_by_side(board):
    choose(board, {0, 1})
    assert [drawn(board, panel) for panel in PANELS] == [2, 1, 1, 2]
    names = [trace.get("name", "") for trace in figure(board, "curves")["data"]]
    assert any("first: by I(h)" in name for name in names) and any("second: by I(h)" in name for name in names)
    board.save_screenshot(str(SCREENSHOTS / "dashboard-two-runs.png"))
    one(board, ".beside").click()
    assert [drawn(board, panel) for panel in PANELS] == [2, 2, 2, 2]
    assert "bleu" in figure(board, "curves", 0)["layout"]["yaxis"]["title"]["text"]
    assert "&lt;img" in figure(board, "curves", 1)["layout"]["yaxis"]["title"]["text"]
    assert not all_of(board, "img")
    one(board, ".beside").click()


def test_a_snapshot_that_training_writes_appears(board):
    choose(board, {1})
    assert one(board, ".slider").get_attribute("max") == "7"
    board.writing.write(looks.snapshot(900, 1))
    until(lambda: one(board, ".slider").get_attribute("max") == "8", 40)
    assert one(board, ".moment").text.startswith("epoch 9,")  # it stood at the end and goes on with it
    press(board, Keys.HOME)
    board.writing.write(looks.snapshot(1000, 1))
    until(lambda: one(board, ".slider").get_attribute("max") == "9", 40)
    assert one(board, ".moment").text.startswith("epoch 1,")  # it stood elsewhere and stays


def test_a_run_that_cannot_be_read_is_named_and_one_that_goes_is_gone(board):
    spoilt = SummaryWriter(str(board.folder / "log/spoilt/headdynamics"))
    spoilt.file_writer.add_summary(summary({RUN: np.array(b"{nonsense")}), 0)
    spoilt.close()
    until(lambda: len(all_of(board, ".chosen input")) == 3, 40)  # the third, so it is ticked
    until(lambda: "spoilt/headdynamics: its events are not those" in one(board, ".complaint").text, 40)
    assert len(all_of(board, ".verdict")) == 1  # what could be read stands
    shutil.rmtree(board.folder / "log/spoilt")
    until(lambda: len(all_of(board, ".chosen input")) == 2 and not one(board, ".complaint").is_displayed(), 40)
    assert all("404" in told for told in complaints(board))
    for box in all_of(board, ".chosen input"):
        if box.is_selected():
            box.click()
    until(lambda: one(board, ".complaint").text == "tick a run to see it")
    assert [drawn(board, panel) for panel in PANELS] == [0, 0, 0, 0]


def test_it_can_be_saved_as_svg_png_and_csv(board):
    choose(board, {0})
    press(board, Keys.END)
    downloads = board.folder / "downloads"
    for panel in PANELS:
        for button in all_of(board, f"#{panel} .saves button"):
            button.click()
        until(lambda panel=panel: {path.name for path in downloads.glob(f"{panel}.*")} == {
            f"{panel}.svg", f"{panel}.png", f"{panel}.csv"})  # fmt: skip
        assert (downloads / f"{panel}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (downloads / f"{panel}.svg").read_text(encoding="utf-8")
    with (downloads / "heads.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["importance"]) for row in rows], looks.mean(1200), rtol=1e-4)
    assert {row["kind"] for row in rows} == set(looks.KINDS) and rows[0]["run"] == "first"


def test_it_is_dark_where_tensorboard_is(board):
    board.execute_script("parent.document.body.classList.add('dark-mode')")
    until(lambda: one(board, "html").get_attribute("data-theme") == "dark")
    assert figure(board, "heads")["layout"]["paper_bgcolor"] == "#1b1d21"
    board.save_screenshot(str(SCREENSHOTS / "dashboard-dark.png"))
    board.execute_script("parent.document.body.classList.remove('dark-mode')")
    until(lambda: one(board, "html").get_attribute("data-theme") == "light")
