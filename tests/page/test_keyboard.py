"""Without a mouse: the tour to its end, pairs of a pattern, heads of the grid; and the focus is seen everywhere."""

import re

import pytest
from playwright.sync_api import expect

# The view that each step of the tour shows.
STEPS = ["inside"] * 4 + ["pattern", "lines", "inside", "heads", "inside", "meaning", "cost", "heads"]
FOCUS = """() => {
    const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
    const name = at.getAttribute('aria-label') ?? at.innerText ?? '';
    const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
    return {name, tag: at.localName, ring, seen: box.bottom > 0 && box.top < innerHeight && box.width > 0};
}"""


def tab_to(visit, name, most=80):
    """Press Tab until what has that name has the focus; wherever it comes by, it is seen."""
    for _ in range(most):
        visit.tab.keyboard.press("Tab")
        at = visit.tab.evaluate(FOCUS)
        if at["tag"] == "body":  # beyond the last element, and round again
            continue
        assert at["ring"], at
        assert at["seen"], at
        if at["name"] == name:
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_the_tour(visit, served, measured):
    measured(visit)
    tab = visit.open(served.at("/heads"))
    tab_to(visit, "Tour")
    tab.keyboard.press("Enter")
    card, titles = tab.get_by_role("region", name="Tour"), []
    for number, view in enumerate(STEPS, 1):
        expect(card).to_contain_text(f"{number} of {len(STEPS)}")
        visit.drawn(view)
        titles.append(card.get_by_role("heading").inner_text())
        expect(card.locator("p")).to_have_text(re.compile(r"\w.{80}"))
        expect(visit.spoken).to_have_text(re.compile(r"\w.{40}"))
        assert f"tour={number}" in tab.url
        if number > 1:  # where the keyboard goes on: the step's title
            assert tab.evaluate("() => document.activeElement.innerText") == titles[-1]
        tab_to(visit, "Done" if number == len(STEPS) else "Next")
        tab.keyboard.press("Enter")
    assert len(set(titles)) == len(STEPS)
    expect(card).to_have_count(0)
    visit.drawn("heads")
    assert "tour=" not in tab.url
    assert tab.evaluate("() => document.activeElement.localName") == "main"


def test_a_link_into_the_tour(visit, served):
    tab = visit.open(served.at("/inside?tour=3"))
    card = tab.get_by_role("region", name="Tour")
    expect(card).to_contain_text("3 of 12")
    tab_to(visit, "Back")
    tab.keyboard.press("Enter")
    expect(card).to_contain_text("2 of 12")


def test_pairs_of_a_pattern(visit, served, reading):
    tab, weights = visit.open(served.at("/pattern?site=2&head=5&query=4&key=1")), reading().weights[2, 5]
    tab_to(visit, "Map of layer 2, head 5")
    for press, query, key in (
        ("ArrowRight", 4, 1),  # it begins at the chosen pair
        ("ArrowRight", 4, 2),
        ("ArrowDown", 5, 2),
        ("ArrowLeft", 5, 1),
        ("ArrowUp", 4, 1),
        ("Shift+ArrowDown", 5, 1),
    ):
        tab.keyboard.press(press)
        names = reading().tokens_as_printed()
        pair = f"{names[query]} ({query}) looks at {names[key]} ({key}): "
        expect(tab.locator("main aside")).to_contain_text(pair)
        assert float(re.search(r"weight (\S+)", visit.readout())[1]) == pytest.approx(
            float(weights[query, key]), abs=1e-6
        )
        # And it is read aloud.
        expect(tab.locator("main [aria-live=polite]", has_text=pair).first).to_be_attached()
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => /query=5&key=1/.test(location.hash)")


def test_heads_of_the_grid(visit, served):
    tab = visit.open(served.at("/heads"))
    grid = tab.get_by_role("grid")
    tab_to(visit, grid.get_by_role("gridcell").first.get_attribute("aria-label"))
    for press in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        tab.keyboard.press(press)
    at = tab.evaluate(FOCUS)
    assert at["name"].startswith("layer 2, head 1,"), at
    assert at["ring"]
    tab.keyboard.press("Space")
    expect(tab.get_by_role("region", name="Chosen heads")).to_contain_text("layer 2, head 1")
    tab.keyboard.press("Enter")
    visit.drawn("pattern")
    assert "site=2&head=1" in tab.url
    # Who stood in a view stands in the next one, and in the one that he goes back to.
    assert tab.evaluate(FOCUS)["tag"] == "main"
    tab.get_by_role("application").focus()
    tab.go_back()
    visit.drawn("heads")
    assert tab.evaluate(FOCUS)["tag"] == "main"


def test_the_menu_of_ways_to_save(visit, served):
    tab = visit.open(served.at("/heads"))
    tab_to(visit, "Save")
    at = []
    for press in ("Enter", "Tab", "ArrowDown", "ArrowUp", "ArrowUp", "Escape", "ArrowDown"):
        tab.keyboard.press(press)
        visit.frame()
        at.append(tab.evaluate(FOCUS)["name"].split("\n")[0])
    assert at == ["Save", "PNG", "SVG", "PNG", "JSON", "Save", "PNG"]
    with tab.expect_download():
        tab.keyboard.press("Enter")
    assert tab.evaluate(FOCUS)["name"] == "Save"


def test_numbers_open_views(visit, served, measured):
    measured(visit)
    tab = visit.open(served.at("/heads"))
    for number, view in enumerate(("heads", "pattern", "lines", "inside", "meaning", "cost"), 1):
        tab.keyboard.press(str(number))
        visit.drawn(view)
    tab.get_by_role("textbox", name="The text that the model reads").press("1")
    expect(tab.get_by_role("link", name="Cost")).to_have_attribute("aria-current", "page")
