"""What each view says and saves, against float64 computed here from the same queries, keys and values."""

import csv
import io
import itertools
import re
from xml.etree import ElementTree as ET

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from saccade.analysis.senses import senses
from saccade.analysis.senses.examples import BANK

# A text with a word of several tokens.
JUMPS = "The saccadic eye jumps unpredictably."
VIEWS = ("heads", "pattern", "lines", "inside", "meaning", "cost")


def rows(data):
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), expected.double(), atol=tolerance, rtol=tolerance
    )


def rounding(text):
    """How far a number may be from how it is written: half of its last digit."""
    digits, _, power = text.partition("e")
    after = digits.partition(".")[2]
    return 0.5 * 10.0 ** (int(power or 0) - len(after))


def numbers_of(text):
    return text.replace("−", "-").replace("+", "").replace("%", "").rstrip(".")


def hovered(visit, steps):
    """What is said at places all over the map: by query and key the share as it is written, and the weight."""
    box, found = visit.tab.get_by_role("application").bounding_box(), {}
    for y, x in itertools.product(range(steps), repeat=2):
        visit.tab.mouse.move(box["x"] + box["width"] * (x + 0.5) / steps, box["y"] + box["height"] * (y + 0.5) / steps)
        said = visit.readout()
        pair = re.search(r"\((\d+)\) looks at \S+ \((\d+)\): (\S+)", said)
        if pair:
            weight = re.search(r"(?:weight|difference) (\S+)", said)[1]
            found[int(pair[1]), int(pair[2])] = (numbers_of(pair[3]), numbers_of(weight))
    return found


def agree(found, expected):
    """What was said under the pointer is the rounded value."""
    for (query, key), (share, weight) in found.items():
        value = float(expected[query, key])
        assert abs(float(share) - 100 * value) <= rounding(share) + 1e-4, (query, key)
        assert abs(float(weight) - value) <= rounding(weight) + 1e-6, (query, key)


# ---------------------------------------------------------------------------------------- pattern


def test_the_weight_under_the_pointer(visit, served, reading):
    visit.open(served.at("/pattern?site=2&head=5"))
    found, weights = hovered(visit, 14), reading().weights[2, 5]
    agree(found, weights)
    for side in (0, 1):  # every query and every key was pointed at
        assert {pair[side] for pair in found} == set(range(len(weights)))


def test_the_difference_under_the_pointer(visit, served, reading):
    visit.open(served.at("/pattern?site=2&head=5&difference=head&against=4.7"))
    weights = reading().weights
    found = hovered(visit, 8)
    assert len(found) > 20
    agree(found, weights[2, 5] - weights[4, 7])


def test_a_pattern_is_saved_whole(visit, served, reading):
    known = reading()
    for look, expected in (("head=3", known.weights[1, 3]), ("", known.weights[1].mean(0))):
        visit.open(served.at(f"/pattern?site=1&{look}"))
        saved = visit.saved_json()
        assert saved["query_tokens"] == saved["key_tokens"] == known.tokens_as_printed()
        close(saved["weights"], expected)
        table = rows(visit.saved("CSV"))
        assert [(int(row["query_position"]), int(row["key_position"])) for row in table] == list(
            itertools.product(range(len(known.tokens)), repeat=2)
        )
        assert [row["key"] for row in table[: len(known.tokens)]] == known.tokens_as_printed()
        close([float(row["weight"]) for row in table], expected.flatten())


def test_a_difference_is_saved(visit, served, reading):
    weights = reading().weights
    visit.open(served.at("/pattern?site=1&head=3&difference=head&against=5.mean"))
    saved = visit.saved_json()
    close(saved["weights"], weights[1, 3])
    close(saved["other"], weights[5].mean(0))
    table = rows(visit.saved("CSV"))
    close([float(row["difference"]) for row in table], (weights[1, 3] - weights[5].mean(0)).flatten())


def test_two_texts(visit, served, reading):
    visit.open(served.at("/pattern?site=3&head=2&beside=1&difference=beside"))
    first, second = (reading(text).weights[3, 2] for text in (BANK[None][0], BANK["river"][0]))
    length = min(len(first), len(second))
    saved = visit.saved_json()
    close(saved["weights"], first[:length, :length])
    close(saved["other"], second[:length, :length])


# ---------------------------------------------------------------------------------------- heads


def test_statistics_of_all_heads(visit, served, reading):
    known = reading()
    visit.open(served.at("/heads"))
    saved = visit.saved_json()
    weights = known.weights[:, :, ~known.special]
    layers, heads, _, length = weights.shape
    away = (torch.arange(length)[~known.special, None] - torch.arange(length)).abs()
    first_or_special = known.special.clone()
    first_or_special[0] = True
    expected = {
        "entropy": torch.special.entr(weights).sum(-1).mean(-1),
        "distance": (weights * away).sum(-1).mean(-1),
        "max_weight": weights.amax(-1).mean(-1),
        "sink": weights[..., first_or_special].sum(-1).mean(-1),
    }
    assert [(row["site"], row["head"]) for row in saved] == [
        (site.name, head) for site in known.trace[0] for head in range(heads)
    ]
    table = rows(visit.saved("CSV"))
    assert len(table) == layers * heads
    for name, values in expected.items():
        close([row[name] for row in saved], values.flatten(), 1e-5)
        close([float(row[name]) for row in table], values.flatten(), 1e-5)


# ---------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_lines_between_words(visit, served, reading, said, side):
    known, heads = reading(JUMPS), (0, 7)
    visit.open(served.at(f"/lines?text={said(JUMPS)}&site=4&head=0&drawn=0-7&special=1&side={side}"))
    expected = known.by_word()
    assert len(known.tokens) > expected.shape[-1]
    saved = visit.saved_json()
    assert len(saved) == len(heads) * expected.shape[-1] ** 2
    for row in saved:
        assert float(row["weight"]) == pytest.approx(
            float(expected[4, int(row["head"]), row["query"], row["key"]]), abs=1e-6
        )
    assert {row["query_word"] for row in saved} == {
        "[CLS]",
        "The",
        "saccadic",
        "eye",
        "jumps",
        "unpredictably",
        ".",
        "[SEP]",
    }
    table = rows(visit.saved("CSV"))
    assert [float(row["weight"]) for row in table] == pytest.approx([row["weight"] for row in saved])


def test_lines_of_ordinary_tokens(visit, served, reading):
    known = reading()
    visit.open(served.at("/lines?site=4&words=0"))
    mean, shown = known.weights[4].mean(0), (~known.special).nonzero()[:, 0].tolist()
    saved = visit.saved_json()
    assert {row["query"] for row in saved} == {row["key"] for row in saved} == set(shown)
    assert len(saved) == len(shown) ** 2
    for row in saved:
        assert float(row["weight"]) == pytest.approx(float(mean[row["query"], row["key"]]), abs=1e-6)
    # What is not drawn is said: the share of the special tokens.
    share = float(mean[shown][:, known.special].sum(-1).mean())
    words = visit.words()
    assert f"{100 * share:.0f}% goes to [CLS] and [SEP], not shown" in words
    assert f"Lines show {100 * (1 - share):.0f}% of the weight" in words


# ---------------------------------------------------------------------------------------- inside a head


def test_inside_a_head(visit, served, reading):
    known, site, head, query, key = reading(), 3, 5, 7, 4
    visit.open(served.at(f"/inside?site={site}&head={head}&query={query}&key={key}"))
    saved = visit.saved_json()
    assert (saved["query"], saved["key"]) == (
        {"position": query, "token": "bank"},
        {"position": key, "token": "roses"},
    )
    numbers = saved["numbers"]
    array = {
        name: torch.tensor(value["data"], dtype=torch.float64).reshape(value["shape"])
        for name, value in numbers.items()
        if isinstance(value, dict) and "data" in value
    }
    call = known.trace[0, site]
    queries, keys, values = (part[0].double() for part in (call.query, call.key, call.value))
    close(array["query"], queries[head, query])
    close(array["key"], keys[head, key])
    scores = keys[head] @ queries[head, query] / queries.shape[-1] ** 0.5
    close(array["score"], scores, 1e-5)
    assert numbers["lse"] == pytest.approx(float(scores.logsumexp(0)), abs=1e-5)
    close(array["weight"], known.weights[site, head, query])
    assert float(array["weight"].sum()) + numbers["rest"] == pytest.approx(1, abs=1e-6)
    outputs = (known.weights[site, :, [query]] @ values)[:, 0]
    close(array["output"], outputs[head], 1e-5)
    close(array["outputs"], outputs, 1e-5)

    # From the model itself: the output projection of each head's part, and what left the layer.
    projection = known.reader.model.encoder.layer[site].attention.output.dense
    each = torch.stack(
        [
            part.double() @ output
            for part, output in zip(projection.weight.split(queries.shape[-1], 1), outputs, strict=True)
        ]
    )
    close(array["projected"], each.detach(), 2e-5)
    close(array["added"], (each.sum(0) + projection.bias.double()).detach(), 2e-5)
    after = call.hidden_after[0, query].double()
    close(array["state"], call.hidden[0, query])
    close(array["after"], after, 2e-5)
    # Parts sum to it: so do their shadows on it.
    shadows = sum(part["length"] * part["cosine"] for part in numbers["parts"])
    assert shadows == pytest.approx(float(after.norm()), rel=1e-4)
    assert (
        f"gives “roses” (token 4) {100 * known.weights[site, head, query, key]:.1f}% of its attention" in visit.words()
    )

    table = {(row["step"], row["item"]): float(row["number"]) for row in rows(visit.saved("CSV"))}
    assert table["3", "weight of roses (token 4)"] == pytest.approx(
        float(known.weights[site, head, query, key]), abs=1e-6
    )
    assert table["2", "score"] == pytest.approx(float(scores[key]), abs=1e-5)
    assert table["3", "sum of all weights"] == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------------------------- meaning, cost


def test_meaning(visit, served, reading):
    visit.open(served.at("/meaning"))
    saved = visit.saved_json()
    found = senses(reading().reader, "bank", {None: BANK[None], **{k: v for k, v in BANK.items() if k is not None}})
    assert saved["senses"] == list(found.senses)
    assert [one["sentence"] for one in saved["occurrences"]] == [one.text for one in found.sentences]
    close(saved["similarity"], found.similarity, 1e-5)
    close(saved["projection"], found.projection, 1e-4)
    close(saved["accuracy"], found.accuracy)
    assert saved["kept"] == pytest.approx(found.kept, abs=1e-5)
    table = rows(visit.saved("CSV"))
    layers, occurrences, _ = found.similarity.shape
    assert len(table) == layers * occurrences
    close(
        [float(row["similarity to river"]) for row in table],
        found.similarity[..., found.senses.index("river")].flatten(),
        1e-5,
    )


def test_labels_of_lines_tell_where_the_lines_end(visit, served):
    visit.open(served.at("/meaning?layer=1"))
    saved = visit.saved_json()
    charts = visit.tab.locator(".side figure")
    ends = zip(saved["senses"], saved["similarity"][-1][0], strict=True)
    near = [f"{sense} {value:.2f}" for sense, value in ends]
    expect(charts.nth(0).locator("svg .name")).to_have_text(near)
    expect(charts.nth(1).locator("svg .value")).to_have_text(f"{saved['accuracy'][-1]:.0%}")
    expect(charts.nth(0)).to_contain_text(f"{saved['senses'][0]} ({saved['similarity'][1][0][0]:.2f})")
    expect(charts.nth(1)).to_contain_text(f"After 1 layer: {saved['accuracy'][1]:.0%}")


def test_cost(visit, served):
    visit.open(served.at("/cost?length=65536"))
    visit.tab.get_by_role("button", name="Measure again").wait_for()
    saved = visit.saved_json()
    points = saved["measured"]["points"]
    assert saved["heads"] == 12
    assert len(points) >= 3
    for point in points:
        assert point["ours"]["seconds"] > 0
        assert point["ours"]["bytes"] >= 0
    assert points[-1]["ours"]["bytes"] > 0
    table = rows(visit.saved("CSV"))
    formula = {
        int(row["tokens"]): float(row["amount"])
        for row in table
        if (row["way"], row["quantity"], row["origin"]) == ("stored pattern", "bytes", "by the formula")
    }
    assert set(formula) >= {1 << power for power in range(4, 21)}
    assert formula == {length: 12 * length**2 * 4 for length in formula}
    measured = {row["quantity"] for row in table if (row["way"], row["origin"]) == ("ours", "measured")}
    assert measured == {"bytes", "seconds"}
    shown = visit.tab.get_by_role("row", name="stored pattern").inner_text()
    assert "206 GB" in shown  # 12 x 65,536² x 4 bytes
    assert "by the formula" in shown


# ---------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("view", VIEWS)
def test_pictures_of_views(visit, served, measured, view):
    measured(visit)
    visit.open(served.at(f"/{view}?site=2&head=5&query=7&key=4"))
    if view == "cost":
        visit.tab.get_by_role("button", name="Measure again").wait_for()
    picture = Image.open(io.BytesIO(visit.saved("PNG")))
    picture.load()
    assert picture.format == "PNG"
    assert 400 <= picture.width <= 6000
    assert 300 <= picture.height <= 20_000
    colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 20
    assert max(count for count, _ in colours) < 0.995 * picture.width * picture.height

    drawing = ET.fromstring(visit.saved("SVG"))  # noqa: S314  ours
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(drawing.get("width")) >= 300
    said = " ".join(" ".join(part.itertext()) for part in drawing.iter())
    assert {
        "heads": "layer 5",
        "pattern": "roses",
        "lines": "roses",
        "inside": "roses",
        "meaning": "bank",
        "cost": "tokens",
    }[view] in said
