"""A real browser and a running explorer, for tests, benchmarks and pictures of the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from saccade.explorer import page

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
LINK = r"http://127\.0\.0\.1:\d+/\?token=[\w-]+#/heads"


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a screen; `scripts/browser.sh` installs it, or says how."""
    names = [os.environ["SACCADE_BROWSER"]] if "SACCADE_BROWSER" in os.environ else BROWSERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    assert found, "Chromium is needed: sh scripts/browser.sh installs it, or says how"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield running
        running.close()


@contextmanager
def exploring(*arguments: object) -> Iterator[str]:
    """The link of a running `saccade explore`, up to its "#"."""
    page.check_built(page.BUILT)
    command = [sys.executable, "-m", "saccade.cli", "explore", "--no-open", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            link = process.stdout.readline().strip()
            assert re.fullmatch(LINK, link), link
            yield link.partition("#")[0]
        finally:
            process.terminate()
