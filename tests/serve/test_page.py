"""The live page in headless Chromium, idle and in the middle of a step of load. Skipped where Chromium is absent."""

import asyncio
import os
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pliant_runtime.serving.load import Client, discover, drive
from pliant_runtime.serving.trace import Phase
from tests.serve.servers import background

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def shown(address: str, folder: Path, *, seconds: int, picture: Path | None = None) -> dict[str, str]:
    """Text of every element with an id after so many seconds of the page's own time."""
    assert CHROMIUM is not None
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        "--disable-dev-shm-usage",
        "--window-size=1100,1050", f"--user-data-dir={folder}", f"--virtual-time-budget={seconds * 1000}",
    ]  # fmt: skip
    what = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
    done = subprocess.run([CHROMIUM, *flags, *what, address], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    reader = Texts()
    reader.feed(done.stdout)
    return {name: " ".join(parts).strip() for name, parts in reader.texts.items()}


class Texts(HTMLParser):
    """The text inside every element that has an id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "input"):
            self._open.append((tag, dict(attrs).get("id")))
            if (name := self._open[-1][1]) is not None:
                self.texts[name] = []

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name is not None:
                self.texts[name].append(data.strip())


async def loaded(address: str, until: threading.Event) -> None:
    client = Client(address)
    target = await discover(client)
    number = 0
    while not until.is_set():
        number += 1
        rule = "smallest" if number % 2 else "server"
        await drive(client, target, [Phase(150.0, 0.5)], rule=rule, seed=number)
    await client.close()


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def test_the_page_describes_an_idle_server(address: str, tmp_path: Path) -> None:
    idle = shown(address, tmp_path / "idle", seconds=3)
    assert idle["name"] == "Net"
    assert "3 sub-networks" in idle["about"]
    assert idle["slo"] == "30000"
    assert idle["merit"] == "-"


@pytest.mark.slow
def test_the_page_shows_figures_under_load(artifact: Path, tmp_path: Path) -> None:
    with background(artifact) as address:
        enough = threading.Event()
        load = threading.Thread(target=lambda: asyncio.run(loaded(address, enough)))
        load.start()
        try:
            for number in range(5):  # the page's clock runs ahead of ours: its last second may have had no answers
                busy = shown(address, tmp_path / f"busy{number}", seconds=20)
                if float(busy["rps"]) > 0:
                    break
            picture = tmp_path / "page.png"
            shown(address, tmp_path / "seen", seconds=110, picture=picture)
        finally:
            enough.set()
            load.join()
    if kept := os.environ.get("PLIANT_SCREENSHOT"):
        shutil.copy(picture, kept)
    assert float(busy["rps"]) > 0
    assert float(busy["p50"]) > 0
    assert float(busy["p99"]) >= float(busy["p50"])
    assert busy["inslo"].endswith("%")
    assert 0.7 <= float(busy["merit"]) <= 0.9
    assert busy["rows"].count("%") == 3
    assert busy["lattop"].endswith("ms")
    assert picture.stat().st_size > 10_000
