"""What the page costs in a real browser without a GPU: how soon it shows, how smoothly it moves, what it holds.

.venv/bin/python benchmarks/page.py [--quick] [--write]

Two traces of models with random weights are recorded first: 12 layers of 12 heads over 512 tokens, and one layer over
131,072.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import Effort, Section, Target, conditions, progress, publish, table
from playwright.sync_api import Browser, Page
from recording import Shape, llama
from torch import nn

import saccade

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from browsing import browser, exploring

SIZE = {"width": 1280, "height": 800}
LONG = 131_072
SENTENCE = "He left the roses by the bank and went home over the bridge in the rain."
SEED = 7

SCRIPT = Target(120, at_most=True)  # kB, gzipped
FIRST = Target(1.0, at_most=True)  # s
FRAME = Target(33, at_most=True)  # ms
EXACT = Target(60, at_most=True)  # ms
MEMORY = Target(400, at_most=True)  # MB
FILE = Target(1.5, at_most=True)  # MB

# Moves the map in each frame, and keeps how long each took.
FRAMES = """async ({ frames, kind }) => {
  const front = document.querySelector("[role=application] canvas");
  const { left, top, width, height } = front.getBoundingClientRect();
  const at = (x, y) => ({
    clientX: left + width * x, clientY: top + height * y, bubbles: true, cancelable: true, pointerId: 1,
    isPrimary: true });
  const next = () => new Promise(requestAnimationFrame);
  const pointer = (type, x, y, buttons) =>
    front.dispatchEvent(new PointerEvent(type, { ...at(x, y), button: 0, buttons }));
  const taken = [];
  let before = await next();
  if (kind === "pan") pointer("pointerdown", 0.5, 0.5, 1);
  for (let i = 0; i < frames; i++) {
    const turn = (2 * Math.PI * i) / frames;
    if (kind === "pan") pointer("pointermove", 0.5 + 0.3 * Math.sin(turn), 0.5 + 0.3 * Math.sin(2 * turn), 1);
    else front.dispatchEvent(new WheelEvent("wheel", { ...at(0.4, 0.6), deltaY: i < frames / 2 ? -40 : 40 }));
    const now = await next();
    taken.push(now - before);
    before = now;
  }
  if (kind === "pan") pointer("pointerup", 0.5, 0.5, 0);
  return taken;
}"""

# From the pointer's last move until the exact weight of its pair stands there; `look` is gone to in the same moment.
WEIGHT = """({ x, y, look }) => new Promise((done, failed) => {
  const front = document.querySelector("[role=application] canvas");
  const { left, top, width, height } = front.getBoundingClientRect();
  const readout = document.querySelector(".readout");
  if (/looks at/.test(readout.textContent)) throw new Error("the pointer is on the map already");
  const move = () => front.dispatchEvent(new PointerEvent("pointermove", {
    clientX: left + width * x, clientY: top + height * y, bubbles: true, pointerId: 1, isPrimary: true }));
  const seen = () => {
    if (!/looks at .* weight [0-9]/.test(readout.textContent)) return;
    watch.disconnect();
    done({ taken: performance.now() - begun, said: readout.textContent });
  };
  const watch = new MutationObserver(seen);
  watch.observe(readout, { childList: true, subtree: true, characterData: true });
  setTimeout(() => failed(new Error("no weight came")), 5000);
  const begun = performance.now();
  if (!look) return move();
  location.hash = look;
  requestAnimationFrame(() => requestAnimationFrame(move));
})"""


# ---------------------------------------------------------------------------------------- what is looked at


def record(shape: Shape, folder: Path, *, save: Path | None = None) -> None:
    """Record a model with random weights."""
    model, ids = shape.build()
    with saccade.record(model, keep="qk", hidden=False, to=folder), torch.no_grad():
        model(ids)
    if save is not None:
        _save(model, save)


def _save(model: nn.Module, folder: Path) -> None:
    """As a folder that a command can load: with the words of the packaged model."""
    from saccade.adapters import pretrained

    model.save_pretrained(folder)  # type: ignore[operator]
    pretrained.load(None).tokenizer.save_pretrained(folder)


def bert() -> Shape:
    """BERT-base with the vocabulary of the packaged model."""
    return Shape("", "Bert", {}, 1, 512)


def long() -> Shape:
    """One layer of four heads."""
    options = llama(1, 128, 4) | {"num_key_value_heads": 2}
    return Shape("", "Llama", options, 1, LONG)


@contextmanager
def tab(running: Browser, errors: list[str]) -> Iterator[Page]:
    """A new tab of the size that the targets are for."""
    context = running.new_context(viewport=SIZE)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()


# ---------------------------------------------------------------------------------------- what is measured


def first_view(running: Browser, link: str, effort: Effort, errors: list[str]) -> list[list[str]]:
    """From navigation until all heads are drawn, and the scripts that it took."""
    seconds, scripts = [], {}

    def keep(response: Any) -> None:
        if re.search(r"\.js($|\?)", response.url):
            scripts[response.url] = len(gzip.compress(response.body(), 9))

    for _ in range(effort.rounds):
        with tab(running, errors) as page:
            page.on("response", keep)
            begun = time.perf_counter()
            page.goto(f"{link}#/heads", wait_until="commit")
            page.wait_for_selector("main[data-drawn]")
            seconds.append(time.perf_counter() - begun)
    return [
        row("scripts of the first view, gzipped", sum(scripts.values()) / 1e3, "kB", SCRIPT),
        row(
            "12 x 12 heads x 512 tokens: from navigation until all heads are drawn",
            statistics.median(seconds),
            "s",
            FIRST,
        ),
    ]


def movement(running: Browser, link: str, effort: Effort, errors: list[str]) -> list[list[str]]:
    """Frames while the map of 131,072 tokens moves; the weight at the pointer; what the tab holds afterwards."""
    frames = 60 if effort.quick else 240
    with tab(running, errors) as page:
        page.goto(f"{link}#/pattern?head=1")
        page.wait_for_selector("main[data-drawn]")
        page.wait_for_timeout(1500)
        taken = {kind: page.evaluate(FRAMES, {"frames": frames, "kind": kind}) for kind in ("zoom", "pan")}
        page.goto(f"{link}#{near(70_000, 60_000)}")
        page.wait_for_selector("main[data-drawn]")
        page.wait_for_timeout(1500)
        draw = random.Random(SEED)
        times = 10 if effort.quick else 40
        known = [pointed(page, draw, (70_000, 60_000), here=True) for _ in range(times)]
        unknown = [pointed(page, draw, elsewhere(draw)) for _ in range(times)]
        held = memory(page)
    rows = [
        row(f"131,072 tokens, {kind}: median frame", statistics.median(some), "ms", FRAME)
        for kind, some in taken.items()
    ]
    return [
        *rows,
        row(
            "131,072 tokens: exact weight at the pointer, where it moved in view", statistics.median(known), "ms", EXACT
        ),
        row(
            "131,072 tokens: exact weight at the pointer, from the link to a place never seen",
            statistics.median(unknown),
            "ms",
            EXACT,
        ),
        row("131,072 tokens: memory of the tab's process after that", held, "MB", MEMORY),
    ]


def pointed(page: Page, draw: random.Random, place: tuple[int, int], *, here: bool = False) -> float:
    """Milliseconds until an exact weight stands there, of a random pair near a place; `here`: it is in view."""
    page.get_by_role("application").locator("canvas").dispatch_event("pointerleave")
    page.wait_for_timeout(100)
    at = {"x": draw.uniform(0.3, 0.7), "y": draw.uniform(0.3, 0.7)}
    found = page.evaluate(WEIGHT, at | {"look": "" if here else near(*place)})
    pair = re.search(r"\(([\d,]+)\) looks at \S+ \(([\d,]+)\)", found["said"])
    assert pair, found
    for position, start in zip(pair.groups(), place, strict=True):
        assert start <= int(position.replace(",", "")) < start + 40, (found, place)
    return float(found["taken"])


def elsewhere(draw: random.Random) -> tuple[int, int]:
    """A query and a key that it may see."""
    low, high = sorted((draw.randrange(0, LONG - 64), draw.randrange(0, LONG - 64)))
    return high, low


def near(query: int, key: int) -> str:
    """The look at forty queries and forty keys."""
    return f"/pattern?head=1&rectangle={query}~{query + 40}~{key}~{key + 40}"


def memory(page: Page) -> float:
    """MB of the tab's process that no other process shares, garbage collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    browser = page.context.browser
    assert browser is not None
    root = browser.new_browser_cdp_session()
    most = max(
        psutil.Process(one["id"]).memory_full_info().uss
        for one in root.send("SystemInfo.getProcessInfo")["processInfo"]
        if one["type"] == "renderer"
    )
    return most / 1e6


def endurance(running: Browser, link: str, effort: Effort, errors: list[str]) -> list[list[str]]:
    """A thousand random zooms, view changes and edits."""
    steps = 100 if effort.quick else 1000
    draw = random.Random(SEED)
    with tab(running, errors) as page:
        page.goto(f"{link}#/pattern")
        page.wait_for_selector("main[data-drawn]")
        for _ in range(steps // 10):
            step(page, draw)
        before, nodes = memory(page), elements(page)
        for _ in range(steps - steps // 10):
            step(page, draw)
        page.evaluate("() => { location.hash = '#/pattern' }")
        page.wait_for_selector("main[data-drawn=pattern]")
        after, more = memory(page), elements(page)
    return [
        row(f"{steps:,} random zooms, view changes and edits: errors", len(errors), "", Target(0, at_most=True)),
        row("memory after them, beside that after the first tenth", after / before, "x", Target(1.5, at_most=True)),
        row("elements on the page, likewise", more / nodes, "x", Target(2, at_most=True)),
    ]


WORDS = ["the bank", "of the river", "a loan", "roses", "he left", "monitors", "by the water", "an account"]
VIEWS = ["heads", "pattern", "lines", "inside"]


def step(page: Page, draw: random.Random) -> None:
    """One thing that a person does."""
    kind = draw.choice(["view", "zoom", "zoom", "zoom", "head", "edit"])
    if kind == "edit" and draw.random() < 0.2:
        box = page.get_by_role("textbox", name=re.compile("The text that the model reads"))
        box.fill(" ".join(draw.choices(WORDS, k=draw.randint(1, 8))))
        box.press("Enter")
    elif kind == "view":
        page.evaluate("view => { location.hash = location.hash.replace(/^#.[a-z]+/, `#/${view}`) }", draw.choice(VIEWS))
    elif kind == "head":
        change = f"site={draw.randrange(6)}&head={draw.randrange(12)}"
        page.evaluate("it => { location.hash = location.hash.split('?')[0] + '?' + it }", change)
    else:
        page.mouse.move(draw.uniform(60, 640), draw.uniform(220, 700))
        page.mouse.wheel(0, draw.uniform(-300, 300))
    page.wait_for_timeout(draw.uniform(0, 60))


def elements(page: Page) -> int:
    """How many elements the page has."""
    return int(page.evaluate("() => document.querySelectorAll('*').length"))


def saved(model: Path, folder: Path) -> list[list[str]]:
    """The page of a sentence as a file."""
    file = folder / "page.html"
    command = [sys.executable, "-m", "saccade.cli", "show", SENTENCE, "--model", str(model), "--out", str(file)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    tokens = len(SENTENCE.rstrip(".").split()) + 3
    return [
        row(f"stand-alone page of a sentence, 12 x 12 heads, {tokens} tokens", file.stat().st_size / 1e6, "MB", FILE)
    ]


def row(what: str, value: float, unit: str, target: Target) -> list[str]:
    """A line of the table."""
    said = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"
    return [what, f"{said if target.met(value) else f'**{said}**'} {unit}".strip(), f"{target} {unit}".strip()]


def measure(effort: Effort, folder: Path) -> Section:
    """All of it."""
    errors: list[str] = []
    progress("page: recording 12 x 12 heads over 512 tokens")
    record(bert(), folder / "bert.zarr", save=folder / "bert")
    progress(f"page: recording {LONG:,} tokens")
    record(long(), folder / "long.zarr")
    rows: list[list[str]] = []
    parts: list[tuple[str, list[Path], Callable[..., list[list[str]]]]] = [
        ("first view", [folder / "bert.zarr"], first_view),
        ("movement", [folder / "long.zarr"], movement),
        ("endurance", [], endurance),
    ]
    with browser() as running:
        for what, arguments, part in parts:
            progress(f"page: {what}")
            with exploring(*arguments) as link:
                rows += part(running, link, effort, errors)
        version = running.version
    progress("page: saved")
    rows += saved(folder / "bert", folder)
    how = f"Chromium {version}, headless, WebGL in software, {SIZE['width']} x {SIZE['height']}; bold misses its target"
    text = f"{how}.\n\n"
    return Section(text + table(["what", "measured", "target"], rows))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        section = measure(Effort(quick=chosen.quick), Path(folder))
    publish(
        "page", "The page", f"Conditions: {conditions()}. {section.text}", write=chosen.write, command="make bench-page"
    )


if __name__ == "__main__":
    main()
