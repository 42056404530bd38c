"""The built page in a real browser, asking a real `saccade explore`; both for all tests of a process."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from saccade.explorer import page as built

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Without a GPU, and without talking to anybody.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1280, "height": 800}
PATIENCE = 30_000  # ms; these machines are slow at times, and a test that waits for long fails anyway


@pytest.fixture(scope="session")
def chromium():
    """A browser. No test is skipped for want of one: `make test` installs it, or says how."""
    names = [os.environ["SACCADE_BROWSER"]] if "SACCADE_BROWSER" in os.environ else BROWSERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, "the tests of the page need Chromium: sh scripts/browser.sh installs it, or says how"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


class Served:
    """A running `saccade explore`."""

    def __init__(self, *arguments):
        built.check_built()
        command = [sys.executable, "-m", "saccade.cli", "explore", "--no-open", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        self.link = self.process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+#/heads", self.link), self.link

    def at(self, look):
        """The link to a look."""
        return self.link.partition("#")[0] + "#" + look

    def end(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def served():
    """The packaged model, with the sentences of "bank"."""
    running = Served()
    yield running
    running.end()


class Visit:
    """A tab, and all that it complained of."""

    def __init__(self, tab):
        self.tab, self.complaints = tab, []
        tab.set_default_timeout(PATIENCE)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", lambda said: self.complaints.append(said.text) if said.type in {"error", "warning"} else None)

    def open(self, link):
        """Go to a link, and wait until its view is drawn."""
        self.tab.goto("about:blank")
        self.tab.goto(link)
        self.drawn()
        return self.tab

    def drawn(self):
        self.tab.wait_for_selector("main[data-drawn]")

    def words(self):
        """The view in words, as a screen reader gets it."""
        return self.tab.locator("main > [role=status]").inner_text()

    def saved(self, way):
        """The file that "Save" gives."""
        self.tab.get_by_role("button", name="Save", exact=True).click()
        with self.tab.expect_download() as waiting:
            self.tab.locator(".menu .list").get_by_role("button", name=re.compile(f"^{way}")).click()
        return Path(waiting.value.path()).read_bytes()

    def saved_json(self):
        return json.loads(self.saved("JSON"))


@pytest.fixture
def visit(chromium):
    """A new tab in the light; a test fails if the page complained of anything."""
    context = chromium.new_context(viewport=WIDE, color_scheme="light", accept_downloads=True, reduced_motion="reduce")
    made = Visit(context.new_page())
    yield made
    context.close()
    assert made.complaints == []
