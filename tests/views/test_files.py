"""Pictures and data files: read back, whole or not there."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from saccade.errors import ArgumentError
from saccade.views import export, picture
from saccade.views.files import whole


def test_json_holds_the_weights(view, tmp_path):
    plain = view.without_special()
    export.write_json(plain, tmp_path / "x.json", focus=6)
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["detail"]) == ("saccade-view", 1, "weights")
    assert [word["text"] for word in content["words"]] == plain.labels
    assert content["words"][3]["tokens"] == [4, 6]
    assert content["focus"] == 6
    np.testing.assert_allclose(content["weights"], plain.weights, atol=1e-6)
    np.testing.assert_allclose(content["special_mass"], plain.summary.special_mass, atol=1e-6)


def test_csv_has_one_line_for_each_weight(view, tmp_path):
    plain = view.without_special()
    export.write_csv(plain, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == export.COLUMNS
    assert len(rows) == plain.weights.size
    row = rows[-9]
    where = [int(row[name]) for name in ("layer", "head", "query_index", "key_index")]
    assert float(row["weight"]) == pytest.approx(float(plain.weights[tuple(where)]), abs=1e-6)
    assert (row["query"], row["key"]) == (plain.labels[where[2]], plain.labels[where[3]])


def test_csv_of_one_word_is_its_row_and_column(view, tmp_path):
    plain = view.without_special()
    export.write_csv(plain.select(0, 0), tmp_path / "x.csv", focus=2)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1 + 8 + 7


def test_a_long_text_is_exported_as_statistics(view, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MOST_WEIGHTS", 10)
    plain = view.without_special()
    export.write_json(plain, tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content["detail"] == "statistics"
    assert "weights" not in content
    assert content["statistics"]["top_keys"] == plain.summary.top_keys.tolist()


@pytest.mark.parametrize(("ending", "focus"), [("png", None), ("svg", 2)])
def test_pictures_are_drawn(view, tmp_path, ending, focus):
    path = tmp_path / f"x.{ending}"
    assert picture.write_picture(view.without_special(), path, focus) == []
    if ending == "png":
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(10**6)) > 20
    else:
        assert path.read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_heat_map_is_the_weights_with_words_on_its_axes(view):
    plain = view.without_special().select(1, 1)
    figure = picture._overview(plain)
    axis, bar = figure.axes
    np.testing.assert_array_equal(axis.images[0].get_array(), plain.weights[0, 0])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == plain.labels
    assert [tick.get_text() for tick in axis.get_yticklabels()] == plain.labels
    assert (axis.get_xlabel(), axis.get_ylabel()) == (picture.KEY, picture.QUERY)
    assert bar.get_ylabel() == "attention weight"
    assert "layer 1 head 1" in figure.get_suptitle()


def test_long_pictures_thin_their_ticks(long_view):
    figure = picture._overview(long_view)
    assert len(figure.axes[0].get_xticks()) <= picture.MOST_TICKS
    assert figure.axes[0].images[0].get_array().shape == (picture.MOST_CELLS,) * 2
    assert figure.axes[0].images[0].get_array().max() == long_view.weights[long_view.most_telling(1)[0]].max()


def test_characters_without_a_font_are_remarked_on(bert, tmp_path):
    from saccade.views import look

    remarks = picture.write_picture(look(bert, "he 𒀀𒁀 left"), tmp_path / "x.png")
    assert remarks == [] or "no font here" in remarks[0]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("before")

    def interrupted():
        with whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_argument_error(tmp_path):
    with pytest.raises(ArgumentError, match="No space left"), whole(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_one_words_picture_marks_it_and_numbers_repeated_words(view):
    plain = view.without_special()
    figure = picture._word(plain, 6)
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["He", "left", "the", "roses", "by", "the:2", "bank", "."]
    assert [label.get_weight() for label in labels] == [*["normal"] * 6, "bold", "normal"]


def test_sixty_words_are_all_named(long_bert):
    from saccade.views import look

    plain = look(long_bert, "he left the rose by it " * 10).without_special()
    axis = picture._overview(plain).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == plain.labels
    assert [label.get_text() for label in axis.get_yticklabels()] == plain.labels
