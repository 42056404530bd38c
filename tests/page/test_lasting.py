"""A long visit: views, zooms and edits at random, without an error and without growth."""

import random

STEPS = 200
SEED = 6
VIEWS = ("heads", "pattern", "lines", "inside", "meaning", "cost")
TEXTS = ("He left the roses by the bank.", "A heron stood by the river.", "Banks lend money.", "Rivers bank.")


def keys(visit, dice):
    names = ["1", "2", "3", "4", "5", "6", "n", "p", "N", "P", "]", "[", "j", "k", "Tab", "Escape", "+", "ArrowDown"]
    for _ in range(dice.randrange(1, 4)):
        visit.tab.keyboard.press(dice.choice(names))


def place(dice):
    return dice.uniform(0, 1280), dice.uniform(160, 800)


def zoom(visit, dice):
    visit.tab.mouse.move(*place(dice))
    visit.tab.mouse.wheel(0, dice.choice((-600, -200, 300)))


def drag(visit, dice):
    visit.tab.mouse.move(*place(dice))
    visit.tab.mouse.down()
    visit.tab.mouse.move(*place(dice), steps=3)
    visit.tab.mouse.up()


def edit(visit, dice):
    box = visit.tab.get_by_role("textbox", name="The text that the model reads")
    box.fill(dice.choice(TEXTS))
    if dice.random() < 0.7:
        box.press("Enter")
    box.blur()


def look(visit, dice):
    fields = {
        "site": dice.randrange(8),
        "head": dice.choice(["mean", 0, 5, 11, 14]),
        "query": dice.randrange(12),
        "key": dice.randrange(12),
        "beside": dice.choice(["", "1", "2"]),
        "difference": dice.choice(["none", "head", "beside"]),
        "against": dice.choice(["1.3", "5.mean"]),
        "chosen": dice.choice(["", "0.1-2.3"]),
        "tone": dice.choice(["linear", "log", "rank"]),
        "order": dice.choice(["", "entropy", "role"]),
        "drawn": dice.choice(["", "0-3-7"]),
        "locked": dice.choice(["", "2", "1-4"]),
        "side": dice.choice(["queries", "keys"]),
        "rectangle": dice.choice(["", "1~3~2~4.5"]),
        "step": dice.randrange(6),
        "text": dice.choice("0123"),
    }
    said = "&".join(f"{name}={fields[name]}" for name in dice.sample(sorted(fields), 5))
    visit.tab.evaluate("look => { location.hash = look }", f"/{dice.choice(VIEWS)}?{said}")


def size(visit, dice):
    visit.tab.set_viewport_size({"width": dice.choice((360, 800, 1280)), "height": dice.choice((600, 800))})


def back(visit, dice):
    for _ in range(dice.randrange(1, 3)):
        visit.tab.evaluate("() => history.length > 3 && history.back()")


ACTIONS = {keys: 6, zoom: 5, drag: 3, edit: 2, look: 8, size: 1, back: 1}


def counted(visit):
    """Nodes of the document, all nodes and listeners that are held, after all views and in the same one."""
    visit.tab.set_viewport_size({"width": 1280, "height": 800})
    for view in (*VIEWS, "heads"):
        visit.go(f"/{view}")
    visit.tab.wait_for_timeout(500)
    devtools = visit.tab.context.new_cdp_session(visit.tab)
    devtools.send("HeapProfiler.collectGarbage")
    held = devtools.send("Memory.getDOMCounters")
    devtools.detach()
    return visit.tab.evaluate("() => document.querySelectorAll('*').length"), held["nodes"], held["jsEventListeners"]


def test_a_long_visit(visit, served, measured):
    measured(visit)
    visit.open(served.at("/heads"))
    before, dice = counted(visit), random.Random(SEED)
    for _ in range(STEPS):
        action = dice.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        action(visit, dice)
        assert visit.complaints == [], action.__name__
        if dice.random() < 0.3:
            visit.frame()
    after = counted(visit)
    # Texts that were read stay in the list of texts, at most 20 of them.
    for most, (first, last) in zip((1.1, 1.5, 1.5), zip(before, after, strict=True), strict=True):
        assert last <= most * first + 50, (before, after)
