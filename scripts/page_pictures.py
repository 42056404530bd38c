"""Pictures of the real page for README.md: docs/images/explorer-*.png. `make docs` runs this."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from browsing import browser, exploring
from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs/images"
# Layer 1, head 4 looks ahead; layer 5 has heads that look at one word each.
LOOKS = {
    "heads": "/heads",
    "pattern": "/pattern?site=1&head=4&query=7",
    "lines": "/lines?site=5&drawn=1-8-9",
    "inside": "/inside?site=1&head=6&query=7&key=5&step=2",
    "meaning": "/meaning",
}
SIZE = {"width": 1280, "height": 760}
SETTLED = 1500  # ms for pictures that follow what was drawn


def main() -> None:
    """Draw them."""
    with exploring() as link, browser() as running:
        context = running.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        tab = context.new_page()
        for name, look in LOOKS.items():
            tab.goto("about:blank")
            tab.goto(f"{link}#{look}")
            tab.wait_for_selector("main[data-drawn]")
            tab.wait_for_timeout(SETTLED)
            shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            shot.save(IMAGES / f"explorer-{name}.png", optimize=True)
            sys.stdout.write(f"drew docs/images/explorer-{name}.png\n")
        context.close()


if __name__ == "__main__":
    main()
