"""Senses of a word: closed forms for the geometry, loops over a model's own hidden states for the whole."""

import io
import json
import math

import pytest
import tiny_models
import torch
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import saccade
from saccade.adapters import pretrained
from saccade.analysis.senses import geometry, hidden_states, senses, snippet
from saccade.analysis.senses.examples import BANK
from saccade.analysis.senses.page import render, verdict
from saccade.errors import ArgumentError

COMPARED = {"accuracy", "raw_accuracy", "within", "between"}
TINY = {
    "money": ["he left the bank.", "she left the bank."],
    "river": ["the river bank.", "a river by the Bank and a bank."],
    None: ["the roses by the banks."],
}


@pytest.fixture(scope="module")
def bank():
    return senses(None, "bank", BANK)


@pytest.fixture(scope="module")
def tiny(model):
    return pretrained.load(model)


@pytest.fixture(scope="module")
def found(tiny):
    return senses(tiny, "bank", TINY)


# ---------------------------------------------------------------------------------------- geometry


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_cosines():
    assert torch.allclose(geometry.cosines(double([[2, 0], [3, 4], [0, -1]])), double(
        [[1, 0.6, 0], [0.6, 1, -0.8], [0, -0.8, 1]]
    ))  # fmt: skip
    assert geometry.cosines(double([[0, 0], [3, 4]]))[0].isnan().all()


def test_less_leaves_exactly_nothing_of_rounding():
    x, mean = double([[[1, 1], [2, 3]]]), double([[1, 1 + 1e-9]])
    assert geometry.less(x, mean).tolist() == [[[0, 0], [1, 3 - (1 + 1e-9)]]]


def test_an_occurrence_and_its_sentence_are_left_out_of_the_centre():
    x = double([[[1, 0], [0, 1], [0, 5], [1, 1], [1, -1], [1, 0]]])
    group, place = torch.tensor([0, 0, 0, 1, 1, -1]), torch.tensor([0, 1, 1, 2, 3, 4])
    near = geometry.similarity_to_centres(x, group, place, 2)[0]
    assert torch.allclose(near[0], double([0, 1]))  # the centre of (0, 1) and (0, 5); of (1, 1) and (1, -1)
    assert torch.allclose(near[1], double([0, 0]))  # without (0, 5), which is in its own sentence
    assert torch.allclose(near[3], double([7, 1]) / double([math.sqrt(74), 1]) * double([1, 0]))
    assert torch.allclose(near[5], double([1 / math.sqrt(37), 1]))
    assert near[4, 1] == pytest.approx(0)
    assert geometry.similarity_to_centres(x, torch.tensor([0, 1, 1, 1, 1, 1]), place, 2)[0, 0, 0].isnan()


def test_nearest_share():
    group, place = torch.tensor([0, 0, 1, 1, -1]), torch.arange(5)
    apart = double([[9, 2, 1, 1, 5], [2, 9, 1, 1, 5], [3, 1, 9, 2, 5], [1, 1, 2, 9, 5], [0, 0, 0, 0, 9]])
    assert geometry.nearest_share(apart[None], group, place).tolist() == [0.75]  # the third is nearest to the first
    assert geometry.nearest_share(torch.ones(1, 5, 5), group, place).item() == pytest.approx(1 / 3)  # by chance
    together = torch.tensor([0, 0, 1, 2, 3])
    assert geometry.nearest_share(apart[None], group, together).tolist() == [0.25]  # only the last is right


def test_within_and_between():
    group, place = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([0, 1, 2, 2, 3])
    cosine = torch.full((5, 5), 100.0)
    cosine[0, 1] = cosine[1, 0] = 0.5
    cosine[:2, 2:4] = 0.25
    cosine[2:4, :2] = 0.75
    within, between = geometry.within_and_between(cosine[None], group, place)
    assert (within.tolist(), between.tolist()) == ([0.5], [0.5])


def test_axes_are_principal_components_whose_sign_is_fixed():
    x = double([[5, 0, 0], [-3, 0, 0], [-2, 2, 0], [0, -2, 0]])
    for sign in (1, -1):
        axes, kept = geometry.fixed_axes(sign * x)
        assert axes.shape == (3, 2)
        assert torch.allclose(axes.T @ axes, torch.eye(2, dtype=torch.float64))
        assert kept == pytest.approx(1)
        along = sign * x @ axes
        assert along[along.abs().argmax(0), [0, 1]].gt(0).all()


def test_axes_without_a_direction_are_0():
    line, kept = geometry.fixed_axes(double([[1, 0, 0], [-1, 0, 0]]))
    assert line.abs().tolist() == [[1, 0], [0, 0], [0, 0]]
    assert kept == 1
    point, kept = geometry.fixed_axes(double([[1, 2, 3], [1, 2, 3]]))
    assert (point.any().item(), kept) == (False, 1)


# ---------------------------------------------------------------------------------------- the whole


def brute_force(reader, sentences, words):
    """Vectors, and those less the mean, by loops over the states that the model itself gives back."""
    texts = [text for group in sentences.values() for text in group]
    states, ordinary = [], []
    for text in texts:
        encoded = pretrained.encode(reader, text)
        with torch.no_grad():
            given = reader.model(**encoded.inputs, output_hidden_states=True).hidden_states
        states.append(torch.stack([x[0].double() for x in given]))
        ordinary += [states[-1][:, i] for i, special in enumerate(encoded.special) if not special]
    vectors = torch.stack([sum(states[s][:, i] for i in tokens) / len(tokens) for s, tokens in words], 1)
    return vectors, vectors - (sum(ordinary) / len(ordinary))[:, None]


def test_against_loops(tiny, found):
    words = [(0, [4]), (1, [4]), (2, [3]), (3, [5]), (3, [8]), (4, [6, 7])]  # "banks" is bank ##s
    assert [(o.sentence, list(o.tokens)) for o in found.occurrences] == words
    vectors, moved = brute_force(tiny, TINY, words)
    assert torch.allclose(found.vectors.double(), vectors.transpose(0, 1), atol=1e-5)
    for layer in range(4):
        for i in range(6):
            for j in range(6):
                assert found.raw_cosine[layer, i, j] == pytest.approx(
                    cosine_similarity(vectors[layer, i], vectors[layer, j], 0).item(), abs=1e-5
                )
                assert found.cosine[layer, i, j] == pytest.approx(
                    cosine_similarity(moved[layer, i], moved[layer, j], 0).item(), abs=1e-5
                )
        river = [moved[layer, 2], (moved[layer, 2] + moved[layer, 3] + moved[layer, 4]) / 3]
        for i, centre in ((3, river[0]), (4, river[0]), (5, river[1]), (0, river[1])):
            assert found.similarity[layer, i, 1] == pytest.approx(
                cosine_similarity(moved[layer, i], centre, 0).item(), abs=1e-5
            )


def test_projection_is_by_the_last_layers_axes_in_all_layers(tiny, found):
    words = [(occurrence.sentence, list(occurrence.tokens)) for occurrence in found.occurrences]
    points = geometry.unit(brute_force(tiny, TINY, words)[1])
    _, vectors = torch.linalg.eigh(torch.cov(points[-1].T, correction=0))
    middle = points[-1].mean(0)
    for axis, direction in enumerate((vectors[:, -1], vectors[:, -2])):
        along = (points - middle) @ direction
        sign = 1 if found.projection[-1, 0, axis] * along[-1, 0] > 0 else -1
        assert torch.allclose(found.projection[:, :, axis], sign * along, atol=1e-4)
    shown = found.projection[-1].square().sum() / (points[-1] - middle).square().sum()
    assert found.kept == pytest.approx(shown.item(), abs=1e-4)


def test_labels_and_what_is_said(found):
    assert [o.label for o in found.occurrences] == ["money 1", "money 2", "river 1", "river 2.1", "river 2.2", "? 1"]
    said = found.about()
    (unknown,) = said["sentences"][4]["occurrences"]
    assert (unknown["label"], unknown["tokens"]) == ("? 1", ["bank", "##s"])
    assert all(mover["along"] > 0 and mover["word"] != "banks" for mover in unknown["moved_by"])
    assert said["sentences"][3]["sense"] == "river"
    assert any("by chance" in note for note in said["notes"])
    assert found.snippet(3) == "by the Bank and a bank"
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "occurrence", "sense", "similarity"]
    assert list(found.to_frame("cosine").columns) == ["layer", "occurrence", "other", "cosine", "raw_cosine"]
    assert json.loads(found.to_json())["coordinates"]["other"] == [o.label for o in found.occurrences]


@pytest.mark.parametrize(
    ("sentences", "missing"),
    [
        ({None: ["the bank.", "a bank."]}, {"similarity", *COMPARED}),
        ({"river": ["the bank.", "a bank."], None: ["he left the bank"]}, COMPARED),
    ],
)  # fmt: skip
def test_without_two_senses(tiny, sentences, missing):
    found = senses(tiny, "bank", sentences)
    full = {
        "similarity",
        "accuracy",
        "raw_accuracy",
        "within",
        "between",
        "cosine",
        "raw_cosine",
        "projection",
        "vectors",
    }
    assert full - set(found.arrays()) == missing
    assert any("fewer than two senses" in note for note in found.about()["notes"])
    assert "told apart" not in printed(found)


def test_the_figures_of_the_three_sentences(bank):
    river, money, row, unclear = (
        next(o for o, x in enumerate(bank.occurrences) if bank.sentences[x.sentence].text == text)
        for text in (BANK["river"][0], BANK["money"][0], BANK["row"][0], BANK[None][0])
    )
    for a, b, first, last in ((river, money, 0.966, 0.750), (river, row, 0.964, 0.820), (money, row, 0.966, 0.798)):
        assert bank.raw_cosine[0, a, b] == pytest.approx(first, abs=0.002)
        assert bank.raw_cosine[6, a, b] == pytest.approx(last, abs=0.002)
    for a, last in ((river, 0.843), (money, 0.860), (row, 0.836)):
        assert bank.raw_cosine[6, unclear, a] == pytest.approx(last, abs=0.002)
    assert bank.accuracy[-1] == 1
    assert bank.chance == pytest.approx(4 / 14)


@pytest.mark.parametrize("kind", sorted(tiny_models.KINDS))
def test_every_kind_of_model(tmp_path, kind):
    reader = pretrained.load(str(tiny_models.save(tmp_path / kind, kind)))
    found = senses(reader, "bank", TINY)
    layers = reader.model.config.num_hidden_layers
    assert found.vectors.shape == (6, layers + 1, 16)
    encoded = pretrained.encode(reader, TINY["money"][0])
    with torch.no_grad():
        states = reader.model(**encoded.inputs, output_hidden_states=True).hidden_states
    word = list(encoded.tokens).index("bank")
    for layer in range(layers):  # the last one's is given back after the final norm
        assert torch.allclose(found.vectors[0, layer], states[layer][0, word], atol=1e-5)


def test_a_layer_without_context_counts_ties_as_chance(tmp_path):
    reader = pretrained.load(str(tiny_models.save(tmp_path / "llama", "llama")))  # positions come in later
    found = senses(reader, "bank", {"a": ["the bank", "he left the bank"], "b": ["a bank", "river bank"]})
    assert found.accuracy[0] == found.raw_accuracy[0] == pytest.approx(1 / 3)


def test_a_tokenizer_that_keeps_case():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", "Ban", "bank", "##ks", "the", "A", ".", "river"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106  no password
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")  # noqa: S106  no password
    config = BertConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2)
    model = BertModel(config).eval()
    found = senses(model, "bank", {None: ["Banks.", "the river bank."]}, tokenizer=tokenizer)
    assert [x["occurrences"][0]["tokens"] for x in found.about()["sentences"]] == [["Ban", "##ks"], ["bank"]]
    with pytest.raises(ArgumentError, match="training mode"):
        senses(model.train(), "bank", {None: ["Banks.", "the river bank."]}, tokenizer=tokenizer)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["the bank"], r"expected \{sense or None: \[sentence, ...\]\}"),
        ({None: "the bank"}, "of unknown sense: expected a list of strings"),
        ({None: ["the bank", 3]}, "expected a list of strings"),
        ({None: ["the bank"]}, "there is 1 sentence; expected at least 2"),
        ({}, "there is no sentence"),
        ({"a": ["the bank"], None: ["a bank"]}, "there is 1 sentence of the sense 'a'; expected at least 2"),
        ({"a": [], None: ["a bank", "the bank"]}, "there is no sentence of the sense 'a'"),
        ({"a": ["the bank", "a bank"], "b": ["he left", "bank"]}, "no 'bank' in 'he left'; its tokens are: .CLS. he"),
        ({None: ["the bank", " the bank "]}, "'the bank' is given twice"),
        ({None: ["the bank", " "]}, "sentence 2 of unknown sense is empty"),
        ({"?": ["the bank", "a bank"]}, "expected a name in one line, or None"),
        ({"": ["the bank", "a bank"]}, "expected a name in one line"),
        ({"a\x1b": ["the bank", "a bank"]}, "expected a name in one line"),
        ({None: ["bank " * 80, "the bank"]}, "is 82 tokens long; tiny has positions for 64"),
        ({None: ["bank", "bank bank"]}, None),
    ],
)  # fmt: skip
def test_sentences_that_do_not_fit(tiny, sentences, message):
    if message is None:  # positions tell them apart
        senses(tiny, "bank", sentences)
        return
    with pytest.raises(ArgumentError, match=message):
        senses(tiny, "bank", sentences)


def test_nothing_but_the_word(tmp_path):
    reader = pretrained.load(str(tiny_models.save(tmp_path / "llama", "llama")))
    with pytest.raises(ArgumentError, match="expected sentences with other words"):
        senses(reader, "bank", {None: ["bank", "bank bank"]})


def test_a_tokenizer_without_spans(tiny):
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=tiny.tokenizer._tokenizer, pad_token="[PAD]")  # noqa: S106  no password
    with pytest.raises(ArgumentError, match="does not know where in a text its tokens stand"):
        senses(tiny.model, "bank", TINY, tokenizer=slow)


def test_layers_that_show_no_hidden_states():
    class Net(torch.nn.Module):
        def forward(self, x):
            return saccade.attention(x, x, x)

    net = Net()
    with saccade.record(net) as trace:
        net(torch.zeros(1, 2, 4, 8))
    with pytest.raises(ArgumentError, match="shows no hidden states"):
        hidden_states(trace[0])


def test_hidden_states_that_are_no_numbers(tmp_path):
    reader = pretrained.load(str(tiny_models.save(tmp_path / "tiny")))
    with torch.no_grad():
        reader.model.encoder.layer[1].output.LayerNorm.bias[0] = torch.nan
    with pytest.raises(ArgumentError, match="hidden states are not all numbers"):
        senses(reader, "bank", TINY)


# ---------------------------------------------------------------------------------------- pictures, terminal


def test_pictures(found, tmp_path):
    for ending in ("png", "svg", "pdf"):
        found.save(tmp_path / f"paths.{ending}")
        assert (tmp_path / f"paths.{ending}").stat().st_size > 5000
    axis = found.plot()
    assert "by the banks" in {text.get_text() for text in axis.texts}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["money", "river", "not known", "layer 0"]
    assert "no proof" in found._figure().get_supxlabel()


def test_labels_do_not_cover_each_other(bank):
    axis = bank.plot()
    figure = axis.figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) > 10
    assert not [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.overlaps(b)]


def test_similarity_by_layer(found, tiny):
    axis = Figure().subplots()
    found.draw_similarity(axis)
    assert [line.get_label() for line in axis.lines] == ["money", "river"]
    assert axis.lines[1].get_ydata().tolist() == found.similarity[:, 5, 1].tolist()
    found.draw_similarity(axis, "money 2")
    assert axis.lines[2].get_ydata().tolist() == found.similarity[:, 1, 0].tolist()
    with pytest.raises(ArgumentError, match="there is no occurrence 'money 3'; there are money 1, money 2"):
        found.draw_similarity(axis, "money 3")
    with pytest.raises(ArgumentError, match="every sense is known"):
        senses(tiny, "bank", {"a": ["the bank", "a bank"]}).draw_similarity(axis)
    with pytest.raises(ArgumentError, match="no sense was given"):
        senses(tiny, "bank", {None: ["the bank", "a bank"]}).draw_similarity(axis)


def printed(found, width=80):
    console = Console(file=io.StringIO(), width=width, _environ={})
    render(console, found)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 40])
def test_no_line_is_wider_than_the_terminal(bank, width):
    assert max(map(cell_len, printed(bank, width).splitlines())) <= width


def test_what_is_printed(bank):
    text = " ".join(printed(bank).split())
    assert "after 6 ████████████████ 100%" in text
    assert "(29% by chance)" in text
    assert "After 6 layers: nearest to river (.87), money close behind (.86), row close behind (.84)." in text
    assert "?: by the bank" in text
    assert text.endswith("no proof that a model understands the sense.")


def test_a_sentence_does_nothing_to_the_terminal(tiny):
    text = printed(senses(tiny, "bank", TINY | {None: ["the \x1b[2J roses by the bank"]}))
    assert "\x1b" not in text
    assert "the �[2J roses by the bank" in text


def test_many_unknown_sentences_are_cut_short(tiny):
    unknown = [f"the bank{' now' * i}." for i in range(1, 31)]
    text = printed(senses(tiny, "bank", TINY | {None: unknown}))
    assert text.count("Which sense is nearest?") == 4
    assert "26 more of unknown sense; --json has all." in text


def test_verdict():
    assert verdict(("a", "b"), [0.2, -0.1]) == "nearest to a (.20), then b (-.10)"
    assert verdict(("a",), [1.0]) == "nearest to a (1.00)"


def test_snippet():
    assert snippet("bank", 0, 4) == "bank"
    assert snippet("An extraordinarily long bank, incomprehensible", 24, 28) == "long bank"


# ---------------------------------------------------------------------------------------- the command

FILE = """# a comment

money\the left the bank.
money\tshe left the bank.
river\tthe river bank.
river\ta river bank now
the banks
"""


def test_command(run, model, tmp_path):
    file = tmp_path / "bank.tsv"
    file.write_text(FILE, encoding="utf-8")
    code, out, err = run("senses", "bank", file, "--model", model)
    assert (code, err) == (0, "")
    assert "“bank” in tiny  sentences: money 2, river 2, 1 of unknown sense" in out
    code, out, _ = run("senses", "bank", "-", "--model", model, "--json", stdin=FILE.encode())
    said = json.loads(out)
    assert (code, said["kind"], said["coordinates"]["sense"]) == (0, "Senses", ["money", "river"])
    assert [one["sense"] for one in said["sentences"]] == ["money", "money", "river", "river", None]
    code, out, _ = run("senses", "bank", "--model", model, "--out", tmp_path / "paths.csv")
    assert (code, out) == (0, f"wrote {tmp_path / 'paths.csv'}\n")
    assert (tmp_path / "paths.csv").read_text().startswith("layer,occurrence,sense,similarity\n0,river 1,river,")


def test_a_question_mark_or_nothing_stands_for_an_unknown_sense():
    from saccade.cli.senses import read_sentences

    assert read_sentences("?\ta bank\n\tthe bank\r\nbank", "x") == {None: ["a bank", "the bank", "bank"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no sentence. A line of FILE is a sense, a tab, and a sentence"),
        (b"# nothing\n\n", "holds no sentence"),
        (b"money\t \n", ":1: there is no sentence after the tab"),
        ("money\tdie Bänke".encode("latin-1"), "is not UTF-8 text: byte 11 is 0xe4"),
        (b"the bank", "there is 1 sentence; expected at least 2"),
        (b"a\tthe bank\nhe left the bank", "there is 1 sentence of the sense 'a'"),
        (b"the bank\nhe left", "there is no 'bank' in 'he left'; its tokens are: [CLS] he left [SEP]"),
    ],
)
def test_bad_files(run, model, tmp_path, content, message):
    file = tmp_path / "bank.tsv"
    file.write_bytes(content)
    code, out, err = run("senses", "bank", file, "--model", model)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("saccade: ")


def test_bad_requests(run, model, tmp_path):
    for arguments, message in (
        (("spring",), "no built-in sentences with 'spring', only with bank: give a FILE"),
        (("bank", tmp_path / "none.tsv"), "none.tsv: No such file or directory"),
        (("bank", tmp_path), "Is a directory"),
        (("bank", "--out", tmp_path / "x.txt"), "the ending says the format"),
        (("bank", "--out", tmp_path / "none" / "x.png"), "there is no folder"),
        (("bank", "--out", tmp_path / "x.png", "--json"), "expected --json or --out, not both"),
        (("bank", "--model", tmp_path), "holds no model"),
    ):
        code, out, err = run("senses", *arguments, *(() if "--model" in arguments else ("--model", model)))
        assert (code, out) == (2, ""), arguments
        assert message in err
