"""A long trace, from the whole context down to one pair of tokens, by wheel, buttons and keys; against float64."""

import re

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

LOOK = "/pattern?site=1&head=2"
TOKENS = 3000


def spoken_weight(said):
    """The pair and the weight that the readout says."""
    pair = re.search(r"token ([\d,]+) looks at token ([\d,]+): ", said)
    weight = re.search(r"^weight (\S+)", said, re.MULTILINE)
    assert pair, said
    assert weight, said
    return (*(int(token.replace(",", "")) for token in pair.groups()), weight[1])


def test_the_whole_map_is_largest_weights(visit, long, long_weights):
    visit.open(long.at(LOOK))
    saved, weights = visit.saved_json(), long_weights(1, 2)
    assert saved["columns"][-1] == "max_weight"
    cells = torch.tensor(saved["cells"], dtype=torch.float64)
    bounds = cells[:, :4].long()
    assert int((bounds[:, 1] - bounds[:, 0]).max()) > 1
    covered = ((bounds[:, 1] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 2])).sum()
    assert int(covered) == TOKENS**2
    (first, rows), (start, columns) = (bounds[:, side].unique(return_inverse=True) for side in (0, 2))
    for side, edges, place in ((1, first, rows), (3, start, columns)):
        assert torch.equal(bounds[:, side], torch.cat([edges[1:], torch.tensor([TOKENS])])[place])
    largest = np.maximum.reduceat(np.maximum.reduceat(weights.numpy(), first, axis=0), start, axis=1)
    torch.testing.assert_close(cells[:, 4], torch.from_numpy(largest)[rows, columns], atol=1e-6, rtol=1e-5)


def test_means_far_away(visit, long, long_weights):
    visit.open(long.at(LOOK + "&reduce=mean"))
    saved, weights = visit.saved_json(), long_weights(1, 2)
    assert saved["columns"][-1] == "mean_weight"
    for a, b, c, d, weight in saved["cells"][:: len(saved["cells"]) // 500]:
        assert weight == pytest.approx(float(weights[a:b, c:d].mean()), abs=1e-6)


# Beyond the diagonal the mask hides everything; along it there are weights to be seen.


def pointed(visit, x, y):
    """What is said at a place, once its weight is there."""
    visit.tab.mouse.move(x, y)
    visit.frame()
    visit.tab.wait_for_function("() => /^weight \\d/m.test(document.querySelector('main aside').innerText)")
    return spoken_weight(visit.readout())


def middle(visit):
    box = visit.tab.get_by_role("application").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def diagonal(visit, x, y):
    """A place at this height where a token meets itself, or nearly so."""
    for _ in range(3):
        query, key, _ = pointed(visit, x, y)
        _, other, _ = pointed(visit, x - 60, y)
        if other == key:
            return x, y
        x += (query - key) * 60 / (key - other)
    return x, y


def wheel(visit, _):
    x, y = diagonal(visit, *middle(visit))
    visit.tab.mouse.move(x, y)
    visit.tab.mouse.wheel(0, -430)  # twice as close
    return x, y


def keys(visit, _):
    visit.tab.get_by_role("application").press("+")


def button(visit, step):
    """Now and then the map is dragged, so that the diagonal is in the middle, where the button zooms."""
    if step % 4 == 3:
        visit.tab.mouse.move(*diagonal(visit, *middle(visit)))
        visit.tab.mouse.down()
        visit.tab.mouse.move(*middle(visit), steps=2)
        visit.tab.mouse.up()
    visit.tab.get_by_role("button", name="Closer").click()
    return middle(visit)


@pytest.mark.parametrize(("closer", "steps"), [(wheel, 12), (button, 24), (keys, 24)])
def test_down_to_one_pair(visit, long, long_weights, closer, steps):
    weights, seen = long_weights(1, 2), []
    tab = visit.open(long.at(f"{LOOK}&query=1500&key={int(weights[1500].argmax())}"))
    tab.get_by_role("application").press("ArrowUp")  # points at the pair that was chosen
    for step in range(steps):
        place = closer(visit, step)
        if place and step % 4 == 0:
            seen.append(pointed(visit, *place))
    tab.wait_for_function("() => /rectangle=/.test(location.hash)")
    visit.frame()
    visit.drawn()
    tab.wait_for_timeout(300)
    saved = visit.saved_json()
    # One pair fills the view; of its neighbours no more than an edge is seen.
    assert saved["queries"][1] - saved["queries"][0] <= 3
    assert saved["keys"][1] - saved["keys"][0] <= 3
    close_by = weights[slice(*saved["queries"]), slice(*saved["keys"])]
    torch.testing.assert_close(torch.tensor(saved["weights"], dtype=torch.float64), close_by, atol=1e-6, rtol=1e-5)
    seen.append(pointed(visit, *middle(visit)))
    for query, key, weight in seen:
        assert float(weight) == pytest.approx(float(weights[query, key]), rel=2e-5, abs=1e-7)
    query, key, weight = seen[-1]
    assert saved["queries"][0] <= query < saved["queries"][1]
    assert saved["keys"][0] <= key < saved["keys"][1]
    assert max(float(weight) for *_, weight in seen) > 0.001

    tab.get_by_role("button", name="Whole").click()
    tab.get_by_text("3,000 × 3,000 tokens").wait_for()


def test_a_mouse_at_rest_does_not_point_while_keys_are_pressed(visit, long):
    """Words scroll under it: the one that the keyboard is at is told, until the mouse moves."""
    tab = visit.open(long.at("/lines?site=1&head=2"))
    words = tab.get_by_role("listbox", name="Queries")
    words.get_by_role("option").nth(5).hover()
    expect(visit.spoken).to_contain_text("5 looks at ")
    words.focus()
    for key, word in (("End", TOKENS - 1), ("Home", 0), ("PageDown", None)):
        tab.keyboard.press(key)
        tab.wait_for_timeout(300)  # a browser tells late of what came under the mouse
        at = (
            words.get_by_role("option")
            .and_(tab.locator(f"#{words.get_attribute('aria-activedescendant')}"))
            .inner_text()
        )
        assert word is None or at == str(word)
        expect(visit.spoken).to_contain_text(re.compile(rf"^{at} looks at "))
    words.get_by_role("option").nth(8).hover()
    expect(visit.spoken).not_to_contain_text(re.compile(rf"^{at} looks at "))


def test_rows_in_view_are_saved_as_such(visit, long):
    tab = visit.open(long.at("/lines?site=1&head=2"))
    saved = visit.saved_json()
    assert {(row["unit"], row["in_view_only"]) for row in saved} == {("token", True)}
    tab.get_by_role("button", name="Save", exact=True).click()
    with tab.expect_download() as waiting:
        tab.get_by_role("banner").get_by_role("button", name=re.compile("^CSV")).click()
    assert waiting.value.suggested_filename.endswith("-in-view.csv")
