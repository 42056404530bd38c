"""What is printed: nothing wider than the terminal, the right words, with and without colours."""

import io
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from saccade.views import attention_view, labels, look, ramp, terminal

HARD = "Supercalifragilisticexpialidocious 銀行 שלום and مرحبا 👩‍👩‍👧 🙂 naïvely, 東京!"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def printed(view, render=terminal.render, *, colour=False, width=80, focus=None):
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        _environ={},
    )
    render(console, view, *([view.last_word() if focus is None else focus]))
    return console.file.getvalue()


def assert_fits(text, width):
    for line in ESCAPES.sub("", text).splitlines():
        assert cell_len(line) <= width, line


@pytest.fixture(params=["short", "hard", "long", "summaries", "one word", "one head", "tokens", "special"])
def any_view(request, view, bert, long_view, monkeypatch):
    plain = view.without_special()
    if request.param == "summaries":
        monkeypatch.setattr(attention_view, "EXACT_ENTRIES", 10)
    made = {
        "short": lambda: plain,
        "hard": lambda: look(bert, HARD).without_special(),
        "long": lambda: long_view,
        "summaries": lambda: look(bert, "he left the roses by the bank. " * 6).without_special(),
        "one word": lambda: look(bert, "bank").without_special(),
        "one head": lambda: plain.select(1, 1),
        "tokens": lambda: look(bert, HARD, kind="tokens").without_special(),
        "special": lambda: view,
    }
    return made[request.param]()


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("render", [terminal.render, terminal.render_word])
def test_no_line_is_wider_than_the_terminal(any_view, render, colour, width):
    text = printed(any_view, render, colour=colour, width=width)
    assert_fits(text, width)
    assert ("\x1b[" in text) == colour
    assert "Jain & Wallace 2019" in text


def test_one_heads_weights_are_printed_as_numbers(view):
    one = view.without_special().select(1, "mean")
    text = printed(one)
    rows = [line for line in text.splitlines() if line.lstrip().startswith("bank ")]
    start = rows[0].index("bank") + len("bank") + 1
    numbers = rows[0][start:].split()
    expected = [f"{w * 100:.0f}" if w >= 0.005 else "·" for w in one.weights[0, 0, one.last_word()]]
    assert numbers == expected


def test_coloured_cells_are_the_ramps_colours(view):
    plain = view.without_special()
    text = printed(plain, colour=True)
    heads = plain.most_telling(4)
    scale = ramp.top_of_scale(max(float(plain.weights[head].max()) for head in heads))
    row = next(line for line in text.splitlines() if re.search(r"^ *bank .*\x1b\[.*48;2", ESCAPES.sub("", line) + line))
    drawn = re.findall(r"48;2;(\d+);(\d+);(\d+)m( +)", row)
    cells = [tuple(map(int, c)) for *c, spaces in drawn for _ in range(len(spaces) // 2)]
    expected = [ramp.colour(float(w) / scale) for head in heads for w in plain.weights[head][plain.last_word()]]
    assert cells == expected


def test_the_heaviest_key_is_named_with_its_weight(view):
    one = view.without_special().select(0, 1)
    query = one.last_word()
    key = int(one.weights[0, 0, query].argmax())
    table = printed(one).split("Where each word looked most")[1]
    row = next(line for line in table.splitlines() if line.lstrip().startswith("bank "))
    first = one.name(key)
    assert row.split()[1:3] == [first, f"{one.weights[0, 0, query, key] * 100:.0f}%"]


def test_special_mass_is_stated(view):
    plain = view.without_special()
    share = f"{plain.summary.special_mass.mean() * 100:.0f}%"
    assert f"[CLS] [SEP] took {share}" in printed(plain)
    assert "took" not in printed(view)


def test_512_tokens_are_summarised(long_view):
    text = printed(long_view)
    assert len(text.splitlines()) < 80
    assert "reduced to 32 × 32" in text
    assert "The words looked at most" in text


def test_one_words_view_names_every_head(view):
    plain = view.without_special()
    text = printed(plain, terminal.render_word)
    top = plain.summary.top_keys[:, :, plain.last_word(), 0]
    block = text.split("in every layer and head")[1].split("“bank”")[0]
    for layer, keys in zip(plain.layers, top, strict=True):
        row = next(line for line in block.splitlines() if line.startswith(f"layer {layer}"))
        for key in keys:
            assert plain.name(int(key))[:5] in row


def test_no_color_and_sixteen_colours_fall_back_to_shades(view):
    for console in (
        Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80),
        Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=True, width=80),
    ):
        terminal.render(console, view.without_special())
        assert "░░ from" in console.file.getvalue()


def test_labels_are_cut_by_cells():
    assert labels.fit("漢字漢字", 5) == "漢字…"
    assert cell_len(labels.fit("👩‍👩‍👧👩‍👩‍👧", 3)) == 3
    assert labels.clusters("e\u0301🇩🇪👩‍👧") == ["e\u0301", "🇩🇪", "👩‍👧"]
    assert labels.fit("\u05e9\u05dc", 4) == "\u2068\u05e9\u05dc\u2069  "


def test_shades_and_colours_rise_with_the_weight():
    shades = [ramp.shade(x) for x in np.linspace(0, 1, 50)]
    assert shades == sorted(shades, key=ramp.SHADES.index)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(ramp.colour, np.linspace(0, 1, 50))]
    assert light == sorted(light)


def test_titles_of_averages_fit_their_patterns(view):
    plain = view.without_special()
    by_head, by_layer = printed(plain.select("mean")), printed(plain.select(None, "mean"))
    for head in plain.heads:
        assert f"mean, head {head}" in by_head.split("Where each word")[0]
    assert re.search(r"layer \d, mean   .*layer \d, mean\n", by_layer)
    assert plain.select("mean", "mean").short_title(0, 0) == "mean"


def test_a_narrow_terminal_wraps_headings_and_drops_whole_columns(view):
    plain = view.without_special()
    text = printed(plain, width=40)
    wide = printed(plain)
    levels = re.findall(r"\S\S from +\d+%", wide)
    assert len(levels) == 8  # of the patterns, and of the word's rows, which a narrow terminal has no room for
    assert re.findall(r"\S\S from +\d+%", text) == levels[:4]
    assert "No room" not in wide
    for words in (
        "rows look, columns are looked at",
        "neighbours aside",
        f"{len(plain.units)} words",
        "No room for: strongest",
    ):
        assert words in " ".join(text.split())


def test_the_heads_that_are_shown_are_named(view):
    plain = view.without_special()
    assert "in layer 1, head 0\n" in printed(plain.select(1, 0), terminal.render_word)
    assert "in every layer, mean of all heads\n" in printed(plain.select(None, "mean"), terminal.render_word)


def test_lists_by_layer_end_with_a_whole_entry(view):
    block = printed(view.without_special(), terminal.render_word, width=40).split("layer by layer")[1]
    rows = [line for line in block.splitlines() if line.startswith("layer ")]
    assert len(rows) == 2 * len(view.layers)
    assert all(line.rstrip().endswith("%") for line in rows)
