"""Two texts beside one another, and what the files of lines and patterns say: each of its own text, all of both."""

import io
import re
from xml.etree import ElementTree as ET

import pytest
from PIL import Image
from playwright.sync_api import expect
from test_numbers import close, rows

from saccade.analysis.senses.examples import BANK

FIRST, SECOND = BANK[None][0], BANK["river"][0]


def words_of(visit, number):
    """The words that look, of one text."""
    return visit.tab.get_by_role("listbox", name="Queries").nth(number)


def chosen(visit, number):
    return words_of(visit, number).get_by_role("option", selected=True).all_inner_texts()


# ---------------------------------------------------------------------------------------- lines


def test_a_choice_belongs_to_one_text(visit, served):
    visit.open(served.at("/lines?site=2&head=5&beside=1"))
    words_of(visit, 0).get_by_role("option", name="roses").click()
    visit.tab.wait_for_url(re.compile("locked="))
    assert (chosen(visit, 0), chosen(visit, 1)) == (["roses"], [])
    words_of(visit, 1).get_by_role("option", name="bank").click()
    visit.tab.wait_for_url(re.compile("locked2="))
    assert (chosen(visit, 0), chosen(visit, 1)) == (["roses"], ["bank"])
    visit.tab.mouse.move(1, 1)
    visit.settled()
    assert f"{FIRST}: roses looks at " in visit.words()
    assert f"{SECOND}: bank looks at " in visit.words()
    saved = visit.saved_json()
    assert {(row["text"], row["query_word"]) for row in saved} == {(FIRST, "roses"), (SECOND, "bank")}
    assert {(row["unit"], row["in_view_only"]) for row in saved} == {("word", False)}
    # Freed in one text, they stay in the other; on the other side there is nothing that was chosen.
    visit.tab.get_by_role("button", name="Free the word").first.click()
    assert (chosen(visit, 0), chosen(visit, 1)) == ([], ["bank"])
    visit.tab.get_by_role("button", name="who looks at them").click()
    visit.tab.wait_for_function("() => !location.hash.includes('locked')")


@pytest.mark.parametrize("width", [360, 1280])
def test_chosen_words_are_not_cut(visiting, served, width):
    visit = visiting(viewport={"width": width, "height": 800})
    visit.open(served.at("/lines?site=2&head=5&beside=1&locked=1-3-4-7&locked2=1-2-3"))
    cut = "all => all.filter(label => label.scrollWidth > label.clientWidth).map(label => label.innerText)"
    labels = visit.tab.locator("[role=option][aria-selected=true] .label")
    assert labels.count() == 7
    assert labels.evaluate_all(cut) == []


# ---------------------------------------------------------------------------------------- pattern


def test_both_patterns_are_saved(visit, served, reading):
    visit.open(served.at("/pattern?site=3&head=2&beside=1"))
    both, saved, table = [reading(FIRST), reading(SECOND)], visit.saved_json(), rows(visit.saved("CSV"))
    maps = [saved, saved["beside"]]
    assert [one["text"] for one in maps] == [FIRST, SECOND]
    for one, known in zip(maps, both, strict=True):
        assert one["query_tokens"] == known.tokens_as_printed()
        close(one["weights"], known.weights[3, 2])
        of = [row for row in table if row["text"] == one["text"]]
        close([float(row["weight"]) for row in of], known.weights[3, 2].flatten())
    assert all(f"“{text}”: all" in visit.words() for text in (FIRST, SECOND))


def test_a_difference_is_of_what_both_texts_have(visit, served, reading, said):
    shorter = "The river bank."
    count = len(reading(shorter).tokens)
    for text, beside in ((FIRST, shorter), (shorter, FIRST)):
        visit.open(served.at(f"/pattern?site=3&head=2&text={said(text)}&beside={said(beside)}&difference=beside"))
        visit.tab.get_by_text(f"{count} × {count} tokens").wait_for()
        assert f"Only the first {count} tokens of both are compared." in visit.words()
        saved = visit.saved_json()
        assert (saved["text"], saved["other_text"]) == (text, beside)
        assert saved["query_tokens"] == reading(text).tokens_as_printed()[:count]
        assert saved["other_key_tokens"] == reading(beside).tokens_as_printed()[:count]
        close(saved["other"], reading(beside).weights[3, 2][:count, :count])


def test_words_say_what_is_not_to_be_seen(visit, served):
    visit.open(served.at("/pattern?site=1&head=3&difference=head&against=1.3"))
    assert "No difference in view." in visit.words()
    visit.tab.route(re.compile("/api/tile"), lambda route: route.abort())
    visit.forgive("Failed to load resource")
    visit.open(served.at("/pattern?site=2&head=4"))
    expect(visit.spoken).to_contain_text("The map could not be loaded.")
    visit.tab.unroute(re.compile("/api/tile"))
    visit.tab.get_by_role("button", name="Try again").click()
    expect(visit.spoken).to_contain_text("Strongest: ")


def test_a_picture_says_what_it_is_of(visit, served):
    visit.open(served.at("/pattern?site=3&head=2"))
    drawing = ET.fromstring(visit.saved("SVG"))  # noqa: S314  ours
    said = [part.text for part in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert said[0].endswith("layer 3, head 2")
    assert said[1:3] == [FIRST, "Weight, share of the query's attention"]
    assert "0%" in said
    picture = Image.open(io.BytesIO(visit.saved("PNG")))
    assert picture.size == tuple(round(2 * float(drawing.get(side))) for side in ("width", "height"))
    assert drawing.get("width") == f"{visit.tab.get_by_role('application').bounding_box()['width']:g}"
    # The page is drawn as finely as its screen again.
    visit.frame()
    assert visit.tab.locator("canvas.maps").evaluate("one => one.width === one.clientWidth")
