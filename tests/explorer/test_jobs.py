"""Jobs: what they find, against the analyses they stand on; given up, refused, and what they leave behind."""

import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import tiny_models
import torch

import saccade
from saccade.adapters import huggingface, pretrained
from saccade.analysis import heads, senses
from saccade.analysis.roles.scoring import ROLES
from saccade.analysis.senses.movers import movers
from saccade.errors import ArgumentError, NotRecordedError, SaccadeError, UnsupportedModelError
from saccade.explorer import cost, library, meaning, reading, roles
from saccade.explorer.explorer import Explorer
from saccade.explorer.parcel import pack
from saccade.explorer.work import Cancelled, never
from saccade.views.attention_view import look

TEXT = "he left the roses by the bank"
RIVER = ["he left the river by the bank", "she left a river and a bank"]
ROSES = ["a rose by the bank", "the roses and the bank now"]
SENTENCES = [{"text": text, "sense": sense} for sense, texts in (("river", RIVER), ("rose", ROSES)) for text in texts]


def load(tmp_path_factory, kind):
    return pretrained.load(str(tiny_models.save(tmp_path_factory.mktemp("jobs") / kind, kind)))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return load(tmp_path_factory, "bert")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return {kind: load(tmp_path_factory, kind) for kind in ("gpt2", "llama", "t5")}


class Told:
    """Takes progress; gives up after so many looks."""

    def __init__(self, looks=None):
        self.shares, self.said, self.looks = [], [], looks

    def progress(self, share, what):
        self.shares.append(share)
        self.said.append(what)

    def cancelled(self):
        if self.looks is not None:
            self.looks -= 1
        return self.looks is not None and self.looks < 0


def run(explorer, job, parameters, looks=None):
    told = Told(looks)
    return explorer.run(job, parameters, told.progress, told.cancelled), told


def is_free(lock):
    """Whether another thread gets it."""
    found = []

    def take():
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    asking = threading.Thread(target=take)
    asking.start()
    asking.join()
    return found[0]


@contextmanager
def left_as_it_was(explorer):
    """The model is the same afterwards, and nobody holds it."""
    model = explorer.reader.model
    ids = torch.arange(4, 10)[None]
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
    implementation = model.config._attn_implementation
    yield
    assert not explorer.model_lock.locked()
    assert model.config._attn_implementation == implementation
    assert not huggingface.is_attached(model)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert is_free(huggingface.LOCK)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).last_hidden_state, before)


JOBS = {"read": {"text": TEXT}, "roles": {"text": "0"}, "meaning": {"word": "bank", "sentences": SENTENCES}}


def explorer_with_text(reader):
    explorer = Explorer(reader=reader)
    explorer.run("read", {"text": TEXT})
    return explorer


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_the_page_has_the_words_that_show_prints(reader, others, kind):
    """In whatever a tokenizer calls a word: signs alone and in rows, and signs that it does not know."""
    model = reader if kind == "bert" else others[kind]
    for text in ("he, and a && rose ~~ bank.", 'roses... !!! "by"?! 5€€'):
        explorer = Explorer(reader=model)
        explorer.run("read", {"text": text})
        found = explorer.answer("tokens", {"text": "0", "sequence": "0"})
        words = [""] * (int(found["word"][-1]) + 1)
        for word, label in zip(found["word"].tolist(), found["labels"], strict=True):
            words[word] += label
        assert words == [unit.label for unit in look(model, text).units]


# ---------------------------------------------------------------------------------------- all jobs


@pytest.mark.parametrize("job", JOBS)
def test_progress_goes_up_to_the_end(reader, job):
    explorer = explorer_with_text(reader)
    with left_as_it_was(explorer):
        _, told = run(explorer, job, JOBS[job])
    assert told.shares == sorted(told.shares)
    assert told.shares[0] == 0
    assert told.shares[-1] == pytest.approx(1)
    assert len(set(told.shares)) > 3
    assert all(told.said)


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("job", JOBS)
def test_given_up_between_layers_nothing_is_left(reader, job, looks):
    explorer = explorer_with_text(reader)
    with left_as_it_was(explorer), pytest.raises(Cancelled):
        run(explorer, job, JOBS[job], looks)
    assert len(explorer.library.texts) == 1


def test_given_up_while_what_moved_the_word_is_found_out(reader):
    explorer = Explorer(reader=reader)
    with left_as_it_was(explorer), pytest.raises(Cancelled):
        run(explorer, "meaning", {"word": "bank", "sentences": SENTENCES}, 4)  # three layers read


def test_given_up_while_another_job_has_the_model(reader):
    explorer = Explorer(reader=reader)
    with explorer.model_lock, pytest.raises(Cancelled):
        run(explorer, "read", {"text": TEXT}, 2)
    assert not explorer.model_lock.locked()
    assert not explorer.library.texts


@pytest.mark.parametrize(("job", "parameters"), [("read", JOBS["read"]), ("meaning", JOBS["meaning"])])
def test_without_a_model_there_is_nothing_to_read_with(reader, job, parameters):
    explorer = Explorer(recorded(reader))
    with pytest.raises(ArgumentError, match="no model to read with"):
        explorer.run(job, parameters)


# ---------------------------------------------------------------------------------------- read


def recorded(reader, text=TEXT, **options):
    inputs = pretrained.encode(reader, text).inputs
    with torch.no_grad(), saccade.record(reader.model, reader.tokenizer, **({"keep": "qkv"} | options)) as trace:
        reader.model(**inputs)
    return trace


def test_what_was_read_is_what_a_recording_has(reader):
    explorer = Explorer(reader=reader)
    answer, told = run(explorer, "read", {"text": TEXT})
    pack(answer)
    text = explorer.library.text(answer["text"]["id"])
    assert answer["text"]["text"] == TEXT
    assert [site["label"] for site in answer["text"]["sites"]] == ["layer 0", "layer 1", "layer 2"]
    assert all(site["exact"] for site in answer["text"]["sites"])
    for mine, expected in zip(text.entry, recorded(reader)[0], strict=True):
        assert torch.equal(mine.query, expected.query)
        assert torch.equal(mine.value, expected.value)
        assert torch.equal(mine.statistics.received, expected.statistics.received)
    assert told.said[0] == "reading 10 tokens"


def test_a_text_that_one_only_came_by_is_not_listed(reader):
    explorer = explorer_with_text(reader)
    for text, instead in (("the rose", ""), ("the roses", "1"), ("the bank", "0")):
        explorer.run("read", {"text": text, "instead": instead})
    assert [text["id"] for text in explorer.about()["texts"]] == ["2", "3"]
    assert explorer.answer("tokens", {"text": "1", "sequence": "0"})["labels"][1:3] == ["the", "rose"]  # for who has it
    explorer.run("read", {"text": "a river", "instead": "no such text"})
    assert len(explorer.about()["texts"]) == 3


def test_texts_of_a_trace_stay_listed(reader):
    with saccade.record(reader.model, reader.tokenizer, keep="qkv") as trace, torch.no_grad():
        reader.model(**reader.tokenizer(TEXT, return_tensors="pt"))
    explorer = Explorer(trace, reader)
    explorer.run("read", {"text": "the rose", "instead": "0"})
    assert [text["id"] for text in explorer.about()["texts"]] == ["0", "1"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_other_models_read_as_well(others, kind):
    explorer = Explorer(reader=others[kind])
    answer, _ = run(explorer, "read", {"text": TEXT})
    assert len(answer["text"]["sites"]) == len(huggingface.attention_sites(others[kind].model))


def test_a_text_of_two_characters_beyond_the_basic_plane(reader):
    text = "😀 the bank 😀"
    assert run(Explorer(reader=reader), "read", {"text": text})[0]["text"]["text"] == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("bank " * 70, r"the text is 72 tokens long; bert has positions for 64: shorten it$"),
        (7, "expected a string"),
        ("\ud83d", "half of a character"),
        ("a" * 200_001, "200,001 characters"),
    ],
)
def test_texts_that_cannot_be_read(reader, text, said):
    explorer = Explorer(reader=reader)
    with left_as_it_was(explorer), pytest.raises(ArgumentError, match=said):
        explorer.run("read", {"text": text})


def test_a_recording_that_would_be_too_large_is_refused_at_its_first_layer(reader, monkeypatch):
    explorer = explorer_with_text(reader)
    size = library._bytes(explorer.library.texts[0].entry)
    monkeypatch.setattr(reading, "MOST_BYTES", size // 2)
    told = Told()
    with left_as_it_was(explorer), pytest.raises(ArgumentError, match=r"10 tokens long: to keep .* shorten it"):
        explorer.run("read", {"text": TEXT}, told.progress)
    assert told.shares == [0]
    assert len(explorer.library.texts) == 1


def test_what_is_reckoned_to_be_kept_is_about_what_is_kept(others):
    for reader in others.values():
        reckoned = []

        class Reckoning(reading.Steps):
            def called(self, call, running, problem, inputs, to=reckoned):
                to.append(reading.bytes_kept(problem, inputs))

        with reading.run_of_model(Explorer(reader=reader), Reckoning(lambda *_: None, never)):
            trace = reading._recorded(reader, "the bank " * 20, reading.encode_whole(reader, "the bank " * 20))
        kept = library._bytes(trace[0])
        assert 0.75 * kept < sum(reckoned) < 1.35 * kept


# ---------------------------------------------------------------------------------------- roles


def test_roles_with_the_model_are_those_of_heads(reader):
    explorer = explorer_with_text(reader)
    answer, told = run(explorer, "roles", {"text": "0"})
    pack(answer)
    assert told.said[0].startswith("the model reads")
    expected = heads(reader, TEXT)
    assert answer["roles"] == expected.strongest.tolist()
    for layer, of_layer in enumerate(answer["roles"]):
        for head, role in enumerate(of_layer):
            share = float(expected.scores[role][layer, head]) if role else 0.0
            assert answer["shares"][layer][head] == pytest.approx(share)
    assert any(role for of_layer in answer["roles"] for role in of_layer)
    assert set(answer["meanings"]) == set(ROLES)


def test_roles_of_a_stored_text_are_those_of_its_own_tokens(reader, tmp_path):
    with saccade.record(reader.model, reader.tokenizer, keep="qk", to=tmp_path / "t.zarr") as trace, torch.no_grad():
        for text in ("the bank", TEXT):
            trace.next(texts=[text])
            reader.model(**pretrained.encode(reader, text).inputs)
    explorer = Explorer(saccade.open_trace(tmp_path / "t.zarr"))
    answer, told = run(explorer, "roles", {"text": "1"})
    expected = heads(recorded(reader))
    assert answer["roles"] == expected.strongest.tolist()
    assert told.shares == pytest.approx([0, 1 / 3, 2 / 3])
    assert "layer 1" in told.said[1]
    told = Told(2)
    with pytest.raises(Cancelled):
        explorer.run("roles", {"text": "1"}, told.progress, told.cancelled)
    assert len(told.shares) == 2


def test_of_some_heads_roles_stand_where_the_heads_do(reader):
    trace = recorded(reader, heads=[1])
    answer, _ = run(Explorer(trace), "roles", {"text": "0"})
    assert answer["roles"] == [told[1:] for told in heads(recorded(reader)).strongest.tolist()]
    answer, _ = run(Explorer(trace, reader), "roles", {"text": "0"})
    assert answer["roles"] == [told[1:] for told in heads(reader, TEXT).strongest.tolist()]


def test_tokens_that_the_model_would_read_otherwise_are_taken_from_the_trace(reader):
    ids = torch.tensor([[7, 5, 9, 4, 4, 8]])  # no frame
    with torch.no_grad(), saccade.record(reader.model, reader.tokenizer, keep="qk") as trace:
        reader.model(input_ids=ids)
    answer, told = run(Explorer(trace, reader), "roles", {"text": "0"})
    assert answer["roles"] == heads(trace).strongest.tolist()
    assert "heads of layer 0" in told.said[0]


def test_cross_attention_has_no_roles():
    model = tiny_models.t5().eval()
    ids = torch.arange(4, 10)[None]
    with torch.no_grad(), saccade.record(model, keep="qk") as trace:
        model(input_ids=ids, decoder_input_ids=ids)
    answer, _ = run(Explorer(trace), "roles", {"text": "0"})
    for name, told in zip(trace[0].sites, answer["roles"], strict=True):
        assert len(told) == 2
        if "EncDec" in name:
            assert told == ["", ""]


def test_roles_that_cannot_be_told_say_why(reader, monkeypatch):
    with pytest.raises(NotRecordedError, match="keep='qk'"):
        run(Explorer(recorded(reader, keep="statistics")), "roles", {"text": "0"})

    class Net(torch.nn.Module):
        def forward(self, x):
            return saccade.attention(x, x, x)

    net = Net()
    with saccade.record(net, keep="qk") as trace:
        net(torch.randn(1, 2, 5, 4))
    with pytest.raises(NotRecordedError, match="known to be the same tokens"):
        run(Explorer(trace), "roles", {"text": "0"})
    monkeypatch.setattr(roles, "MOST_WEIGHTS", 599)  # 3 layers, 2 heads, 10 tokens
    with pytest.raises(ArgumentError, match="600 weights would have to be formed; at most 599"):
        run(Explorer(recorded(reader)), "roles", {"text": "0"})


# ---------------------------------------------------------------------------------------- meaning


def test_meaning_is_that_of_senses(reader):
    sentences = [*SENTENCES, {"text": "😀 the bank", "sense": None}]
    answer, _ = run(Explorer(reader=reader), "meaning", {"word": "bank", "sentences": sentences})
    pack(answer)
    expected = senses(reader, "bank", {"river": RIVER, "rose": ROSES, None: ["😀 the bank"]})
    assert answer["senses"] == ["river", "rose"]
    assert answer["similarity"].dtype == torch.float32
    torch.testing.assert_close(answer["similarity"], expected.similarity.float())
    torch.testing.assert_close(answer["projection"], expected.projection.float())
    assert answer["accuracy"] == pytest.approx(expected.accuracy.tolist())
    assert answer["chance"] == pytest.approx(expected.chance)
    assert answer["kept"] == pytest.approx(expected.kept)
    assert [one["label"] for one in answer["occurrences"]] == ["river 1", "river 2", "rose 1", "rose 2", "? 1"]
    assert [one["sense"] for one in answer["occurrences"]] == ["river", "river", "rose", "rose", None]
    for one in answer["occurrences"]:  # as a browser counts
        units = one["sentence"].encode("utf-16-le")
        assert units[2 * one["start"] : 2 * one["stop"]].decode("utf-16-le") == "bank"
    assert answer["occurrences"][-1]["start"] == 7
    nearest = expected.nearest(4)
    towards = ["river", "river", "rose", "rose", nearest]
    assert [one["towards"] for one in answer["moved"]] == towards
    for told, moved in zip(answer["moved"], movers(expected, list(enumerate(towards))), strict=True):
        strongest = moved.strongest(meaning.MOST_MOVERS)
        assert [(m["layer"], m["head"], m["word"]) for m in told["movers"]] == [
            (m.layer, m.head, m.word) for m in strongest
        ]
        assert [m["amount"] for m in told["movers"]] == pytest.approx([m.along for m in strongest])
        assert told["movers"]


def test_senses_that_are_not_given_are_not_made_up(reader):
    unknown = [{"text": text, "sense": None} for text in RIVER]
    answer, _ = run(Explorer(reader=reader), "meaning", {"word": "bank", "sentences": unknown})
    pack(answer)
    assert answer["senses"] == []
    assert answer["similarity"].shape == (4, 2, 0)
    assert answer["accuracy"] is None
    assert answer["moved"] == [{"towards": "", "movers": []}] * 2
    one = [{"text": text, "sense": "river"} for text in RIVER]
    answer, _ = run(Explorer(reader=reader), "meaning", {"word": "bank", "sentences": one})
    assert answer["moved"] == [{"towards": "river", "movers": []}] * 2


def test_a_model_whose_layers_cannot_be_taken_apart_still_compares(reader, monkeypatch):
    def refuse(*_):
        raise UnsupportedModelError("layer 3 is odd")

    monkeypatch.setattr(meaning, "movers", refuse)
    answer, _ = run(Explorer(reader=reader), "meaning", {"word": "bank", "sentences": SENTENCES})
    assert answer["caveat"].endswith("What moved the word cannot be told: layer 3 is odd.")
    assert [one["movers"] for one in answer["moved"]] == [[]] * 4
    assert answer["accuracy"] is not None


GOOD = [{"text": text, "sense": None} for text in RIVER]


@pytest.mark.parametrize(
    ("word", "sentences", "said"),
    [
        ("rose", SENTENCES, "there is no 'rose' in"),
        ("", SENTENCES, "expected a word"),
        ("bank", SENTENCES[:3], "there is 1 sentence of the sense 'rose'"),
        ("bank", [], "there is no sentence"),
        ("bank", [*GOOD, {"text": "the bank"}], "sentence 3: expected its text"),
        ("bank", [*GOOD, {"text": 7, "sense": None}], "sentence 3: expected its text"),
        ("bank", [*GOOD, {"text": "the bank", "sense": 7}], "sentence 3: expected its text"),
        ("bank", [*GOOD, {"text": "bank " * 201, "sense": None}], "sentence 3 has 1,005 characters"),
        ("bank", [*GOOD, {"text": "bank " * 99, "sense": None}], "positions for 64"),
        ("bank", [*GOOD, {"text": "bank \ud83d", "sense": None}], "sentence 3 holds half of a character"),
        ("bank", [*GOOD, {"text": "a bank", "sense": "x" * 101}], "its sense has 101 characters"),
        ("bank", [*GOOD, {"text": RIVER[0], "sense": None}], "is given twice"),
        ("bank", [{"text": f"bank {i}", "sense": None} for i in range(65)], "65 sentences; expected at most 64"),
        ("x" * 101, SENTENCES, "at most 100 characters"),
    ],
)
def test_sentences_that_cannot_be_compared(reader, word, sentences, said):
    explorer = Explorer(reader=reader)
    with left_as_it_was(explorer), pytest.raises(ArgumentError, match=said):
        explorer.run("meaning", {"word": word, "sentences": sentences})


def test_sentences_that_would_take_too_much_memory_are_refused(reader, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 10_000)
    with pytest.raises(ArgumentError, match="4 sentences: to keep"):
        Explorer(reader=reader).run("meaning", {"word": "bank", "sentences": SENTENCES})


# ---------------------------------------------------------------------------------------- cost


def test_ours_and_the_stored_pattern_answer_the_same():
    torch.manual_seed(0)
    inputs = torch.randn(3, 1, 2, 192, 8).unbind()
    mine, theirs = cost.ours(*inputs), cost.stored(*inputs)
    assert len(mine) == len(theirs) == 9
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_cost_is_measured_in_another_process(reader, monkeypatch):
    begun = spied(monkeypatch)
    answer, told = run(Explorer(reader=reader), "cost", {})
    pack(answer)
    assert (answer["heads"], answer["width"], answer["itemsize"]) == (2, 8, 4)
    assert f"{torch.get_num_threads()} threads" in answer["conditions"]
    lengths = [point["length"] for point in answer["points"]]
    assert lengths == list(cost.LENGTHS[: len(lengths)])
    assert len(lengths) >= 3
    for point in answer["points"]:
        for one in (point["ours"], point["stored"]):
            assert one is None or (one["seconds"] > 0 and one["bytes"] > 0)
        if point["stored"] is not None and point["length"] >= 512:
            # Scores, weights and a product of them; ours keeps what it returns and a workspace.
            pattern = 2 * point["length"] ** 2 * 4
            assert 2 * pattern < point["stored"]["bytes"] < 5 * pattern
        assert point["ours"]["bytes"] >= 2 * point["length"] * (8 * 4 + 84)
        assert point["ours"]["bytes"] < 2 * point["length"] * (8 * 4 + 148) + (16 << 20)
    assert told.shares == sorted(told.shares)
    assert [process.returncode for process in begun] == [0]


def spied(monkeypatch):
    """The processes that are begun."""
    begun, start = [], subprocess.Popen

    def popen(*arguments, **options):
        begun.append(start(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(cost.subprocess, "Popen", popen)
    return begun


def test_given_up_the_process_is_ended(monkeypatch):
    begun = spied(monkeypatch)
    with pytest.raises(Cancelled):
        run(Explorer(reader=None, trace=attended()), "cost", {}, 2)
    assert [process.returncode for process in begun] == [-9]


def attended():
    class Net(torch.nn.Module):
        def forward(self, x):
            return saccade.attention(x, x, x)

    net = Net()
    with saccade.record(net) as trace:
        net(torch.randn(1, 2, 5, 4))
    return trace


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho first >&2\necho no memory is told here >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(SaccadeError, match="could not be measured: no memory is told here"):
        run(Explorer(attended()), "cost", {})


def test_without_a_model_the_usual_sizes_are_measured(others):
    assert cost._sizes(None) == (12, 64)
    assert cost._sizes(others["llama"]) == (2, 8)
    assert cost._sizes(others["t5"]) == (2, 8)
    assert cost._sizes(others["gpt2"]) == (2, 8)


def test_what_would_take_too_long_or_too_much_is_not_tried():
    fast, slow, large = cost.Timed([0.01, 9.0], 1000), cost.Timed([1.0], 1000), cost.Timed([0.01], cost.MOST_BYTES)
    assert cost._affordable({"ours": fast, "stored": fast}, 1.0) == ["ours", "stored"]
    assert cost._affordable({"ours": fast, "stored": slow}, 8.0) == ["ours"]
    assert cost._affordable({"ours": fast, "stored": large}, 8.0) == ["ours"]
    assert cost._affordable({"ours": fast, "stored": fast}, 0.3) == ["ours"]  # both together would take too long


PEAK = """
import torch
from saccade.explorer.cost import peak_bytes, stored
def case():
    first = torch.ones(2 << 20)
    second = first + 1
    return [second.sum(), torch.ones(1 << 20)]
torch.manual_seed(0)
inputs = torch.randn(3, 1, 12, 512, 32).unbind()
for _ in range(5):
    stored(*inputs)  # what is loaded once is no memory of a call, and what it leaves behind is in pieces
print(peak_bytes(lambda: stored(*inputs)))
for _ in range(3):
    print(peak_bytes(case))
print(peak_bytes(lambda: [torch.ones(10)]))
"""


def test_memory_is_what_a_call_held_at_most():
    said = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    pattern, *arrays, few = map(int, said.stdout.split())
    whole = 12 * 512 * 512 * 4
    assert 2.5 * whole < pattern < 3.5 * whole  # scores, weights, a product
    for found in arrays:
        assert 18 << 20 <= found < 24 << 20
    assert 40 <= few < 1 << 20
