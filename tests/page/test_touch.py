"""Fingers on the map of a long trace, on a telephone."""

import re

import pytest
from playwright.sync_api import expect

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


class Hand:
    """Fingers on the middle of the map."""

    def __init__(self, tab):
        self.tab, self._devtools = tab, tab.context.new_cdp_session(tab)
        tab.get_by_role("application").scroll_into_view_if_needed()
        box = tab.get_by_role("application").bounding_box()
        self.x, self.y = box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"]

    def _tell(self, kind, *fingers):
        points = [{"x": self.x + x, "y": self.y + y, "id": i} for i, (x, y) in enumerate(fingers)]
        self._devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def move(self, *ways):
        """Each finger from its first to its last place, past those between."""
        for i in range(len(ways)):
            self._tell("touchStart", *(way[0] for way in ways[: i + 1]))
        for places in list(zip(*ways, strict=True))[1:]:
            self._tell("touchMove", *places)
            self.tab.wait_for_timeout(16)
        self._tell("touchEnd")
        self.tab.wait_for_timeout(300)  # the link is written when the map has rested, in a slow gesture also on the way

    def tap(self):
        self.tab.touchscreen.tap(self.x, self.y)


@pytest.fixture
def seen(visiting, long):
    visit = visiting(**PHONE)
    visit.open(long.at("/pattern?site=1&head=2"))
    return visit


def rectangle(tab):
    found = re.search(r"rectangle=([\d.]+)~([\d.]+)~([\d.]+)~([\d.]+)", tab.url)
    return [float(edge) for edge in found.groups()] if found else None


def test_two_fingers_zoom_and_one_pans(seen):
    hand = Hand(seen.tab)
    assert rectangle(seen.tab) is None
    hand.move([(-x, 0) for x in range(20, 100, 5)], [(x, 0) for x in range(20, 100, 5)])
    seen.tab.wait_for_url(re.compile("rectangle="))
    start, stop, first, last = rectangle(seen.tab)
    assert stop - start == pytest.approx(3000 * 20 / 95, rel=0.1)
    assert last - first < 1000
    hand.move([(x, -x) for x in range(0, 60, 5)])
    seen.tab.wait_for_function("before => !location.hash.includes(before)", arg=f"rectangle={start:g}")
    lower, _, left, _ = rectangle(seen.tab)
    assert lower > start
    assert left < first


def test_what_a_finger_taps_can_be_read(seen, long_weights):
    Hand(seen.tab).tap()
    expect(seen.tab.locator("main aside")).to_contain_text("looks at")
    said = seen.readout()
    query, key = (int(place.replace(",", "")) for place in re.findall(r"token ([\d,]+)", said)[:2])
    weight = float(re.search(r"^weight (\S+)", said, re.MULTILINE)[1].replace("−", "-"))
    assert weight == pytest.approx(float(long_weights(1, 2)[query, key]), rel=1e-5, abs=1e-9)
    assert f"query={query}" in seen.tab.url
    assert f"key={key}" in seen.tab.url


def test_fingers_that_move_the_map_do_not_point(seen):
    """What was tapped stays what is read: not another pair beside it, under a finger that has gone."""
    hand = Hand(seen.tab)
    hand.tap()
    expect(seen.tab.locator("main aside .readout")).to_contain_text("looks at")
    tapped = seen.tab.locator("main aside .readout .pair").inner_text()
    hand.move([(-x, 0) for x in range(20, 100, 5)], [(x, 0) for x in range(20, 100, 5)])
    hand.move([(x, -x) for x in range(0, 60, 5)])
    seen.tab.wait_for_url(re.compile("rectangle="))
    seen.frame()
    assert seen.tab.locator("main aside .readout .pair").inner_text() == tapped
