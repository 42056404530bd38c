"""Links and texts: a link reopens the same, texts are read from links and keys, and what goes wrong is said."""

import json
import re

from playwright.sync_api import expect

ROSE = [
    ("He left the rose in a vase.", "flower"),
    ("The rose smelled sweet.", "flower"),
    ("Prices rose again.", "went up"),
    ("The sun rose early.", "went up"),
]


def same_again(visiting, visit, fields):
    """The address, opened in another tab, shows and saves the same."""
    tab = visit.tab
    for field in fields:
        tab.wait_for_function("field => location.hash.includes(field)", arg=field)
    visit.drawn()
    visit.settled()
    saved, words, address = visit.saved_json(), visit.words(), tab.url
    other = visiting(context=tab.context)
    other.open(address)
    expect(other.spoken).to_have_text(words)
    assert json.dumps(other.saved_json()) == json.dumps(saved)
    assert other.tab.url == address
    return saved


def test_a_link_of_heads(visiting, visit, served):
    tab = visit.open(served.at("/heads"))
    tab.get_by_role("combobox", name="order").select_option("-entropy")
    tab.get_by_label("frames").select_option("sink")
    tab.get_by_label("colours").select_option("cividis")
    tab.get_by_label("weights").select_option("log")
    tab.get_by_role("gridcell").first.focus()
    tab.keyboard.press("Space")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Space")
    same_again(visiting, visit, ["order=-entropy", "colour=sink", "palette=cividis", "tone=log", "chosen="])
    other = visiting(context=tab.context)
    other.open(tab.url)
    assert other.tab.get_by_role("combobox", name="order").input_value() == "-entropy"
    assert other.tab.get_by_role("region", name="Chosen heads").get_by_role("listitem").count() == 2


def test_a_link_of_a_pattern(visiting, visit, served):
    tab = visit.open(served.at("/pattern"))
    tab.get_by_role("combobox", name="Layer", exact=True).select_option("4")
    tab.get_by_role("combobox", name="Head", exact=True).select_option("7")
    tab.get_by_label("minus").select_option("head")
    tab.get_by_label("Head that is taken off", exact=True).select_option("3")
    tab.get_by_role("button", name="rank").click()
    for _ in range(3):
        tab.get_by_role("button", name="Closer").click()
    saved = same_again(visiting, visit, ["site=4", "head=7", "against=4.3", "tone=rank", "rectangle="])
    assert saved["queries"] != [0, 10]


def test_a_link_of_lines(visiting, visit, served):
    tab = visit.open(served.at("/lines?site=2&head=5"))
    tab.get_by_role("button", name="head 9", exact=True).click()
    tab.get_by_role("button", name="who looks at them").click()
    tab.get_by_label("whole words").uncheck()
    tab.get_by_label("special tokens").check()
    keys = tab.get_by_role("listbox", name=re.compile("Keys"))
    keys.get_by_role("option", name=re.compile("^bank")).click()
    keys.get_by_role("option", name=re.compile("^roses")).click()
    tab.mouse.move(0, 0)
    saved = same_again(visiting, visit, ["drawn=5-9", "side=keys", "words=0", "special=1", "locked=4-7"])
    assert {row["key_word"] for row in saved} == {"bank", "roses"}
    assert {row["head"] for row in saved} == {"5", "9"}


def test_a_link_of_inside(visiting, visit, served):
    tab = visit.open(served.at("/inside?site=1&head=3"))
    tab.get_by_role("listbox", name="Query token").get_by_role("option", name=re.compile("^bank, ")).click()
    tab.get_by_role("listbox", name="Key token").get_by_role("option", name=re.compile("^left, ")).click()
    tab.get_by_role("navigation", name="Steps").get_by_role("button", name=re.compile("Weight")).click()
    saved = same_again(visiting, visit, ["query=7", "key=2", "step=3"])
    assert (saved["query"]["token"], saved["key"]["token"]) == ("bank", "left")


def test_a_link_of_meaning(visiting, visit, served):
    tab = visit.open(served.at("/meaning"))
    tab.get_by_role("button", name="Other words and sentences").click()
    tab.get_by_label("Word", exact=True).fill("rose")
    for number, (text, sense) in enumerate(ROSE, 1):
        tab.get_by_role("combobox", name=f"Sense of sentence {number}", exact=True).fill(sense)
        tab.get_by_role("textbox", name=f"Sentence {number}", exact=True).fill(text)
    more = tab.get_by_role("button", name=f"Remove sentence {len(ROSE) + 1}", exact=True)
    while more.count():
        more.click()
    tab.get_by_role("button", name="Read these").click()
    tab.get_by_role("heading", name=re.compile("“rose” goes")).wait_for()
    saved = same_again(visiting, visit, ["word=rose", "sentences="])
    assert saved["senses"] == ["flower", "went up"]


def test_back(visit, served):
    tab = visit.open(served.at("/heads"))
    for name, view in (("Pattern", "pattern"), ("Lines", "lines")):
        tab.get_by_role("link", name=name).click()
        visit.drawn(view)
    tab.go_back()
    visit.drawn("pattern")
    tab.go_back()
    visit.drawn("heads")
    tab.go_forward()
    visit.drawn("pattern")


# ---------------------------------------------------------------------------------------- texts


def test_texts_of_links_are_read(visit, served, reading, said):
    first, second = "The bank lends money.", "Herons stand by the bank."
    visit.open(served.at(f"/pattern?text={said(first)}&beside={said(second)}&site=2&head=5"))
    tab = visit.tab
    tab.wait_for_function("() => document.querySelectorAll('select')[1].selectedOptions[0].text.includes('Herons')")
    expect(visit.spoken).to_contain_text("bank")
    saved = visit.saved_json()
    assert saved["text"] == first
    assert torch_close(saved["weights"], reading(first).weights[2, 5])
    # Reading them once is enough.
    assert sum("/api/run/read" in url for url in visit.asked) <= 3


def torch_close(found, expected):
    return (
        max(abs(float(a) - float(b)) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
        < 1e-6
    )


def box(tab):
    return tab.get_by_role("textbox", name="The text that the model reads")


def test_views_follow_what_is_typed(visit, served, reading):
    text = "Money grows by the river."
    tab = visit.open(served.at("/pattern?site=2&head=5&rectangle=1~4~2~5"))
    box(tab).fill(text)
    tab.wait_for_function("() => location.hash.includes('Money')")
    visit.drawn()
    expect(visit.spoken).to_contain_text("all 8 queries by 8 keys")
    saved = visit.saved_json()
    assert saved["query_tokens"] == reading(text).tokens_as_printed()
    assert torch_close(saved["weights"], reading(text).weights[2, 5])
    for view in ("lines", "inside", "heads"):
        visit.go(tab.url.partition("#")[2].replace("/pattern", f"/{view}"))
        assert text in tab.content().replace("&nbsp;", " ") or text in visit.words()


def test_what_one_comes_by_is_not_listed(visit, brief):
    """Of the texts that were read in pauses of typing, the list has the one that is shown; and those one asked for."""
    tab = visit.open(brief.at("/heads"))
    listed = tab.get_by_role("combobox", name="Text", exact=True).locator("option")
    for text in ("the rose", "the rose left", "the rose left the bank"):
        box(tab).fill(text)
        tab.wait_for_function(
            "text => decodeURIComponent(location.hash).includes(`~${text}&`) || "
            "decodeURIComponent(location.hash).endsWith(`~${text}`)",
            arg=text,
        )
    assert listed.all_inner_texts()[-1] == "the rose left the bank"
    assert not {"the rose", "the rose left"} & set(listed.all_inner_texts())
    tab.reload()
    visit.drawn()
    assert listed.all_inner_texts()[-1] == "the rose left the bank"
    assert not {"the rose", "the rose left"} & set(listed.all_inner_texts())
    assert tab.title() == "the rose left the bank – Saccade"
    box(tab).press("Enter")
    box(tab).fill("the bank")
    expect(listed.last).to_have_text("the bank")
    assert listed.all_inner_texts()[-2:] == ["the rose left the bank", "the bank"]


def test_reading_is_stopped(visit, served):
    held = []
    tab = visit.open(served.at("/heads"))
    visit.settled()
    words = visit.words()
    tab.route("**/api/run/read", lambda route: held.append(route))  # noqa: PLW0108  a route handler has to be a function
    box(tab).fill("This is never read.")
    tab.keyboard.press("Enter")
    stop = tab.get_by_role("button", name="Stop")
    stop.click()
    expect(stop).to_have_count(0)
    assert len(held) == 1
    assert tab.get_by_role("alert").count() == 0
    assert visit.words() == words
    tab.unroute("**/api/run/read")
    box(tab).fill("This is read after all.")
    tab.keyboard.press("Enter")
    expect(visit.spoken).to_contain_text("This is read after all.")


def test_a_text_that_is_too_long(visit, served):
    tab = visit.open(served.at("/heads"))
    visit.settled()
    words = visit.words()
    box(tab).fill("bank " * 600)
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("602 tokens long; all-MiniLM-L6-v2 has positions for 512")
    assert visit.words() == words


# ---------------------------------------------------------------------------------------- what goes wrong


def test_a_link_to_a_head_that_there_is_not(visit, served):
    tab = visit.open(served.at("/pattern?site=99&head=99"))
    tab.wait_for_function("() => location.hash === '#/pattern?site=5&head=11'")


def test_a_wrong_token(visit, served):
    visit.tab.goto(re.sub("token=[^#]+", "token=somebody-elses-token", served.at("/heads")))
    expect(visit.tab.get_by_role("alert")).to_contain_text("token")
    assert visit.tab.locator("main").count() == 0
    visit.forgive("401|403")


def test_a_server_that_has_ended(visit, brief):
    tab = visit.open(brief.at("/pattern"))
    brief.end()
    box(tab).fill("she left the river")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("The server does not answer")
    # What is drawn stays; what was not fetched says so.
    assert "looks at" in visit.words()
    tab.get_by_role("link", name="Lines").click()
    expect(tab.locator("main").get_by_role("alert")).to_contain_text(re.compile("server"))
    tab.get_by_role("link", name="Pattern").click()
    expect(tab.get_by_role("application")).to_be_visible()
    visit.forgive("ERR_CONNECTION_REFUSED|Failed to fetch|ERR_")
