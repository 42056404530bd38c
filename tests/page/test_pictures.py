"""How views look, compared with small pictures that were looked at by a person.

A picture is the window, scaled down so far that the smoothing of edges hardly matters, in a font that is the same
everywhere (with another one, lines break elsewhere), with lists as wide whatever texts other tests have had read. What
may differ: its mean, and the block that differs most; a screen of twice the pixels stays below half of both. What is
missing, or has the wrong colours, differs by more, and tests below show that. `SACCADE_NEW_PICTURES=1` writes the
pictures anew.
"""

import base64
import io
import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
IN_THAT_FONT = """
    const bytes = Uint8Array.from(atob('%s'), character => character.charCodeAt(0));
    document.fonts.add(new FontFace('Fixed', bytes.buffer));
    const sheet = new CSSStyleSheet();
    sheet.replaceSync('* { font-family: Fixed !important } [aria-label=Text] select { width: 14rem !important }');
    document.adoptedStyleSheets = [sheet];
"""
SIZE, BLOCK = (160, 100), 5  # pixels
MOST_MEAN, MOST_BLOCK = 2.0, 10.0  # levels of 255
LOOKS = {
    "heads": "/heads?colour=entropy",
    "pattern": "/pattern?site=2&head=5&query=7&key=4",
    "lines": "/lines?site=2&head=5&locked=7",
    "inside": "/inside?site=2&head=5&query=7&key=4",
    "meaning": "/meaning",
    "cost": "/cost",
}


def picture(visit):
    visit.frame()
    visit.tab.wait_for_timeout(400)  # sums and roles come after what they are of
    shot = Image.open(io.BytesIO(visit.tab.screenshot(caret="hide")))
    return shot.convert("RGB").resize(SIZE, Image.Resampling.BOX)


def differences(one, other):
    """The mean over the picture, and that of the block that differs most."""
    levels = np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean(-1)
    blocks = levels.reshape(SIZE[1] // BLOCK, BLOCK, SIZE[0] // BLOCK, BLOCK).mean((1, 3))
    return levels.mean(), blocks.max()


def alike(one, other):
    mean, block = differences(one, other)
    return mean <= MOST_MEAN and block <= MOST_BLOCK


def shown(visiting, served, measured, view, theme, **options):
    visit = visiting(color_scheme=theme, **options)
    measured(visit)
    visit.tab.add_init_script(IN_THAT_FONT % base64.b64encode(FONT.read_bytes()).decode())
    tab = visit.open(served.at(LOOKS[view]))
    visit.settled()
    if view == "cost":
        tab.get_by_role("button", name="Measure again").wait_for()
    return visit


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", LOOKS)
def test_views_look_as_they_did(visiting, served, measured, view, theme, tmp_path):
    visit = shown(visiting, served, measured, view, theme)
    known, now = PICTURES / f"{view}-{theme}.png", picture(visit)
    if os.environ.get("SACCADE_NEW_PICTURES"):
        PICTURES.mkdir(exist_ok=True)
        now.save(known, optimize=True)
    found = differences(now, Image.open(known).convert("RGB"))
    now.save(tmp_path / known.name)
    assert found[0] <= MOST_MEAN, (found, "see", tmp_path)
    assert found[1] <= MOST_BLOCK, (found, "see", tmp_path)


BROKEN = {
    "no map": ("pattern", "canvas.maps"),
    "no axes": ("pattern", "canvas.around"),
    "no legend": ("pattern", "aside figure"),
    "no heads": ("heads", "main canvas"),
    "no lines": ("lines", ".stage canvas"),
    "no words": ("lines", "[role=listbox]"),
    "no paths": ("meaning", "figure.map svg"),
    "no curves": ("cost", "figure svg"),
    "no tokens": ("inside", "[role=listbox]"),
    "no bar": ("cost", "header nav"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_missing_is_seen(visiting, served, measured, broken):
    view, selector = BROKEN[broken]
    visit = shown(visiting, served, measured, view, "light")
    known = Image.open(PICTURES / f"{view}-light.png").convert("RGB")
    hide = "all => { for (const one of all) one.style.visibility = 'hidden'; return all.length }"
    assert visit.tab.locator(selector).evaluate_all(hide) > 0
    assert not alike(picture(visit), known), differences(picture(visit), known)


def test_another_screen_makes_no_difference(visiting, served, measured):
    visit = shown(visiting, served, measured, "meaning", "light", device_scale_factor=2)
    mean, block = differences(picture(visit), Image.open(PICTURES / "meaning-light.png").convert("RGB"))
    assert 0 < mean < MOST_MEAN / 2
    assert 0 < block < MOST_BLOCK / 2


@pytest.mark.parametrize("view", LOOKS)
def test_the_wrong_theme_is_seen(view):
    light, dark = (Image.open(PICTURES / f"{view}-{theme}.png").convert("RGB") for theme in ("light", "dark"))
    assert not alike(light, dark)
