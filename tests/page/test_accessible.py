"""Each view, light and dark, wide and narrow: without violations by axe, and without scrolling sideways."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
NARROW = {"width": 360, "height": 740}
WIDE = {"width": 1280, "height": 800}
# A window is made narrow, or begins so and is made wide.
SIZES = {"light": (WIDE, NARROW), "dark": (NARROW, WIDE)}
LOOKS = {
    "heads": ["/heads?colour=entropy&chosen=1.2", "/heads?order=role&colour=role"],
    "pattern": [
        "/pattern?site=2&head=5&query=7&key=4",
        "/pattern?site=2&head=5&difference=head&against=1.3&chosen=0.1",
    ],
    "lines": ["/lines?site=2&head=5&locked=7", "/lines?drawn=0-1-2&beside=1"],
    "inside": ["/inside?site=2&head=5&query=7"],
    "meaning": ["/meaning"],
    "cost": ["/cost"],
}


def violations(visit):
    """What axe finds, in words."""
    devtools = visit.tab.context.new_cdp_session(
        visit.tab
    )  # scripts of a debugger may be run whatever the page's policy
    devtools.send("Runtime.evaluate", {"expression": AXE.read_text()})
    asked = {"expression": "axe.run().then(JSON.stringify)", "awaitPromise": True, "returnByValue": True}
    answer = devtools.send("Runtime.evaluate", asked)
    devtools.detach()
    found = json.loads(answer["result"]["value"])
    assert len(found["passes"]) > 10
    return [
        f"{rule['id']}: {node['html'][:200]} | {node.get('failureSummary', '')[:300]}"
        for rule in found["violations"]
        for node in rule["nodes"][:3]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", LOOKS)
def test_views(visiting, served, measured, view, theme):
    visit = visiting(color_scheme=theme, viewport=SIZES[theme][0])
    measured(visit)
    tab, found = visit.open(served.at(LOOKS[view][0])), {}
    for look in LOOKS[view]:
        visit.go(look)
        for size in SIZES[theme]:
            tab.set_viewport_size(size)
            visit.frame()
            tab.wait_for_timeout(100)
            visit.drawn(view)
            wide = tab.evaluate("() => document.scrollingElement.scrollWidth - innerWidth")
            if wide > 0:
                found[look, size["width"], "scrolls sideways"] = wide
            wrong = violations(visit)
            if wrong:
                found[look, size["width"]] = wrong
    assert found == {}


def test_a_word_that_is_as_long_as_a_line(visit, served, said):
    word = "a" + "rose" * 40  # one token: the tokenizer takes no word of more than 100 characters apart
    tab = visit.open(served.at(f"/inside?text={said(f'He left {word} by the bank.')}&site=2&head=5&query=3&key=3"))
    expect(visit.spoken).to_contain_text("aroseroserose")
    for size in (WIDE, NARROW):
        tab.set_viewport_size(size)
        visit.frame()
        assert tab.evaluate("() => document.scrollingElement.scrollWidth <= innerWidth")


def test_tour_and_errors(visit, served):
    tab = visit.open(served.at("/heads?tour=1"))
    tab.get_by_role("region", name="Tour").wait_for()
    tab.get_by_role("button", name="Save", exact=True).click()
    tab.get_by_role("textbox", name="The text that the model reads").fill("bank " * 600)
    tab.keyboard.press("Enter")
    tab.get_by_role("alert").wait_for()
    for size in (WIDE, NARROW):
        tab.set_viewport_size(size)
        assert violations(visit) == []
        assert tab.evaluate("() => document.scrollingElement.scrollWidth <= innerWidth")
