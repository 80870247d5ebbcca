"""A headless Chromium for what is looked at, a real TensorBoard for it to look at, and what both said."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1500,1900",
)  # fmt: skip
LOCAL = {"data", "blob", "file", "chrome", "chrome-untrusted", "about", "devtools"}
THEIRS = "Multiple instances of Three.js", "fallback to software WebGL"  # TensorBoard's own page says so


def missing() -> str:
    """Why no browser can be had; empty where one can."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(absent)} not installed: apt-get install chromium chromium-driver" if absent else ""


@contextlib.contextmanager
def chromium(folder: Path):
    """A browser with an empty profile that keeps its downloads in `folder/downloads`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*QUIET, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    (folder / "downloads").mkdir(parents=True)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def tensorboard(logdir: Path):
    """A real TensorBoard process on a free port, which looks again each second; its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = ["-m", "tensorboard.main", "--logdir", logdir, "--port", port, "--host", "localhost"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: answers(port), 60)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def until(true, seconds: float = 20):
    """Wait until `true()` is, and give it back."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not so after {seconds} s: {true}")


def complaints(driver: WebDriver) -> list[str]:
    """What the console was told since the last time, without what TensorBoard says of itself."""
    told = [entry["message"] for entry in driver.get_log("browser")]
    return [message for message in told if not any(theirs in message for theirs in THEIRS)]


def hosts(driver: WebDriver) -> set[str | None]:
    """Who was asked for anything since the last time."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in LOCAL}


def all_of(driver: WebDriver, selector: str):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def one(driver: WebDriver, selector: str):
    return driver.find_element(By.CSS_SELECTOR, selector)
