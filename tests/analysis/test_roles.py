"""Roles of heads: closed forms, the N x N float64 oracle of transformers' own attention, traces, long texts."""

import json
import math
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
from torch import nn

import saccade
from saccade import masks
from saccade.adapters.pretrained import Pretrained, load, wrap
from saccade.analysis.roles import Asked, heads, score_batches
from saccade.analysis.roles.reading import Batch, Untold, random_repeats, text_batches
from saccade.analysis.roles.scoring import ROLES, Reading
from saccade.errors import ArgumentError, MaskError, NotRecordedError, UnsupportedModelError

VOCABULARY = 400


class ByHand(nn.Module):
    """One call whose heads have queries and keys made from positions or tokens, one-hot."""

    def __init__(self, queries, keys, mask=None, sharp=30.0):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 1)
        self.queries, self.keys, self.mask, self.sharp = queries, keys, mask, sharp

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        query, key = (torch.stack([one(input_ids) for one in side], 1).float() for side in (self.queries, self.keys))
        return saccade.attention(query * self.sharp, key, key, mask=self.mask, scale=1.0)


def one_hot(indices):
    return nn.functional.one_hot(indices.clamp_min(0), VOCABULARY) * (indices >= 0)[..., None]


def position(step):
    return lambda ids: one_hot((torch.arange(ids.shape[1]) + step).expand_as(ids))


def token(step):
    """Each position's own token, or that of a position before."""

    def made(ids):
        shifted = torch.full_like(ids, -1)
        shifted[:, step:] = ids[:, : ids.shape[1] - step]
        return one_hot(shifted)

    return made


def nothing(ids):
    return torch.zeros(*ids.shape, VOCABULARY)


def by_hand(*args, **options):
    return Pretrained("by hand", ByHand(*args, **options), Untold(), None)


def test_perfect_heads():
    """Previous, next, itself, first; on tokens that repeat, the same token and the one after it."""
    same = [position(-1), position(1), position(0), token(0), token(0)]
    first = lambda ids: one_hot(torch.zeros_like(ids))  # noqa: E731
    keys = [position(0)] * 3 + [token(0), token(1)]
    found = heads(by_hand([*same, first], [*keys, position(0)]), length=20, seed=3)
    one = pytest.approx(1.0, abs=1e-6)
    assert float(found.scores["previous"][0, 0]) == one
    assert float(found.scores["next"][0, 1]) == one
    assert float(found.scores["local"][0, 2]) == one
    assert float(found.scores["global"][0, 2]) == pytest.approx(0.0, abs=1e-6)
    assert float(found.scores["first"][0, 5]) == one
    assert found.strongest[0, [0, 1, 2, 5]].tolist() == ["previous", "next", "local", "first"]
    assert found.scores["duplicate"][0, 3] == pytest.approx(0.5, abs=1e-6)  # the other half is on itself
    assert found.scores["separators"].isnan().all()  # nobody knows
    assert found.sink_rate() == pytest.approx(1 / 6)
    causal = heads(by_hand([token(0), nothing], [token(1), nothing], mask=masks.causal()), length=20)
    assert causal.scores["induction"][0, 0] == one
    assert causal.strongest[0].tolist() == ["induction", ""]
    others = masks.causal() & ~masks.window(0, 0) | masks.prefix(1)
    assert heads(by_hand([token(0)], [token(0)], mask=others), length=20).scores["duplicate"][0, 0] == one


def test_a_uniform_head_has_one_share_of_each_key():
    n = 2 * 30
    found = heads(by_hand([nothing], [nothing]), length=30, local=2, patterns={"ends": masks.prefix(3)})
    for role in ("previous", "next", "first", "duplicate", "induction"):
        assert float(found.scores[role]) == pytest.approx(1 / n, rel=1e-5), role
    near = (5 * n - 2 * (1 + 2)) / n**2
    assert float(found.scores["local"]) == pytest.approx(near, rel=1e-5)
    assert float(found.scores["global"]) == pytest.approx(1 - near, rel=1e-5)
    assert float(found.scores["ends"]) == pytest.approx(3 / n, rel=1e-5)
    assert float(found.entropy) == pytest.approx(math.log(n), rel=1e-5)
    assert float(found.distance) == pytest.approx((n - 1 / n) / 3, rel=1e-5)
    assert found.strongest.tolist() == [[""]]
    for role, table in found.uniform.items():
        assert role == "separators" or float(table) == pytest.approx(float(found.scores[role]), rel=1e-4)


# ---------------------------------------------------------------------------------------- the oracle


def oracle(weights, reading, local, pattern):
    """Every score of one layer, by the definition, from the matrix ``(B, H, N, N)``."""
    batch, _, n, _ = weights.shape
    ids, valid = reading.ids, reading.valid
    i, j = torch.arange(n)[:, None], torch.arange(n)
    sets = {role: torch.zeros(batch, n, n, dtype=torch.bool) for role in ROLES}
    for b in range(batch):
        first = int(valid[b].nonzero()[0])
        sets["previous"][b] = j == i - 1
        sets["next"][b] = j == i + 1
        sets["first"][b] = j == first
        sets["separators"][b] = reading.separators[b] & (j != first)
        sets["local"][b] = (i - j).abs() <= local
        sets["global"][b] = (i - j).abs() > local
        for q in range(n):
            for k in range(n):
                sets["duplicate"][b, q, k] = k != q and ids[b, q] == ids[b, k]
                follows = k > 0 and k - 1 != q and bool(valid[b, k - 1])
                sets["induction"][b, q, k] = follows and bool(ids[b, q] == ids[b, k - 1])
    sets["own"] = pattern.expand(batch, n, n)
    seen = (weights > 0) & valid[:, None, None]
    found = {role: _mean(weights, keys[:, None] & seen, valid) for role, keys in sets.items()}
    every = {"entropy": -torch.xlogy(weights, weights).sum(-1), "distance": (weights * (i - j).abs()).sum(-1)}
    for name, values in every.items():
        counted = valid[:, None] & seen.any(-1)
        found[name] = torch.where(counted, values, 0).sum((0, 2)) / counted.sum((0, 2))
    return found


def _mean(weights, keys, valid):
    counted = keys.any(-1) & valid[:, None]
    return torch.where(counted, (weights * keys).sum(-1), 0).sum((0, 2)) / counted.sum((0, 2))


def repeated(size, seed):
    rows = architectures.token_ids(2, size, seed)
    ids = torch.cat([rows, rows], 1)
    return Batch({"input_ids": ids}, Reading(ids, torch.ones_like(ids, dtype=torch.bool), None, ids.shape[1]))


def eager(model, inputs):
    """The model's own patterns, written out; in float64 a row that sees nothing would be NaN there."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [x.double() for x in model(**inputs, output_attentions=True).attentions]


MODELS = ["GPT-2", "Mistral", "Gemma 2", "GPT-OSS", "BERT", "ModernBERT", "T5"]
PAIRS = [(a, case) for a, case in architectures.cases() if a.name in MODELS and case != "packed"]


@pytest.mark.parametrize(("architecture", "case"), PAIRS, ids=lambda x: getattr(x, "name", x))
def test_scores_are_those_of_the_oracle(architecture, case):
    model = architecture.build()
    reader = model.get_encoder() if model.config.is_encoder_decoder else model
    inputs, _ = architecture.inputs(case)
    inputs = {name: x for name, x in inputs.items() if name in {"input_ids", "attention_mask"}}
    ids = inputs["input_ids"] % 7 + 10  # so few that they repeat
    valid = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    reading = Reading(ids, valid, (ids == 12) | (valid.cumsum(-1) == 1), ids.shape[1])
    text, random = Batch(inputs | {"input_ids": ids}, reading), repeated(11, seed=4)
    asked = Asked(local=3, patterns={"own": masks.window(5, 0) & ~masks.window(1, 0)})
    found = score_batches(Pretrained("tiny", reader, Untold(), None), [text], random, asked)
    own = asked.patterns["own"].to_dense(masks.Lengths(1, 1, *[ids.shape[1]] * 2))[0]
    length = random.reading.ids.shape[1]
    repeats = Reading(random.reading.ids, random.reading.valid, random.reading.ids < 0, length)
    none = torch.zeros(1, length, length, dtype=torch.bool)
    both = zip(eager(reader, text.inputs), eager(reader, random.inputs), strict=True)
    for layer, (of_text, of_random) in enumerate(both):
        expected = oracle(of_text, reading, 3, own)
        told = oracle(of_random, repeats, 3, none)
        expected |= {role: told[role] for role in ("duplicate", "induction")}
        for name, means in expected.items():
            table = found.columns[name][layer]
            torch.testing.assert_close(
                table, means.float(), rtol=2e-4, atol=2e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert len(found.sites) == layer + 1


def test_padding_does_not_matter():
    """A rotary model reads texts of 24, 17 and 9 tokens in a batch padded at either end as it reads them alone."""
    model = next(a for a in architectures.ARCHITECTURES if a.name == "Llama").build()
    reader = Pretrained("tiny", model, Untold(), None)
    ids, sizes = architectures.token_ids(3, 24) % 7 + 10, (24, 17, 9)
    texts = [ids[i : i + 1, :size] for i, size in enumerate(sizes)]

    def batch(rows, side):
        padded = torch.cat([nn.functional.pad(x, (24 - x.shape[1], 0)[::side]) for x in rows])
        valid = torch.cat([nn.functional.pad(torch.ones_like(x), (24 - x.shape[1], 0)[::side]) for x in rows])
        reading = Reading(padded, valid.bool(), padded == 12, 24)
        return Batch({"input_ids": padded, "attention_mask": valid}, reading)

    def score(*batches):
        return score_batches(reader, batches, repeated(9, seed=1))

    alone = score(*[Batch({"input_ids": x}, Reading(x, x > 0, x == 12, x.shape[1])) for x in texts])
    for side in (1, -1):
        together = score(batch(texts, side))
        for name, table in alone.columns.items():
            torch.testing.assert_close(together.columns[name], table, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


# ---------------------------------------------------------------------------------------- traces


def test_a_trace_scores_as_the_model_does(tmp_path):
    model = next(a for a in architectures.ARCHITECTURES if a.name == "Gemma 2").build()
    random = repeated(12, seed=2)
    live = score_batches(Pretrained("tiny", model, Untold(), None), [], random)
    with saccade.record(model, keep="qk", to=tmp_path / "t.zarr") as trace, torch.no_grad():
        model(**random.inputs, use_cache=False)
    for one in (trace, saccade.open_trace(tmp_path / "t.zarr")):
        found = heads(one)
        assert list(found.sites) == list(live.sites)
        for name, table in live.columns.items():
            torch.testing.assert_close(found.columns[name], table, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_texts_in_a_trace_score_as_texts_do(model):
    loaded = load(model)
    texts = ["He left, the rose.", "the river bank by the bank . . and a rose", "she"]
    [batch] = text_batches(loaded, texts, 8, truncate=False)
    live = heads(loaded, texts)
    with saccade.record(loaded.model, loaded.tokenizer, keep="qk") as trace, torch.no_grad():
        loaded.model(**batch.inputs)
    found = heads(trace)
    for name in set(live.columns) - {"duplicate", "induction"}:
        torch.testing.assert_close(found.columns[name], live.columns[name], rtol=1e-4, atol=1e-5, msg=name)
    assert batch.reading.separators[0, :8].tolist() == [True, False, False, True, False, False, True, True]
    one_by_one = heads(loaded, texts, batch=1)
    for name, table in live.columns.items():
        torch.testing.assert_close(one_by_one.columns[name], table, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_a_trace_of_a_text_read_with_a_cache():
    """Queries of a later step stand at the end of the keys."""
    model = next(a for a in architectures.ARCHITECTURES if a.name == "Llama").build()
    ids = architectures.token_ids(1, 12) % 7 + 10
    with saccade.record(model, keep="qk") as whole, torch.no_grad():
        model(ids, use_cache=False)
    with saccade.record(model, keep="qk") as steps, torch.no_grad():
        cache = model(ids[:, :7], use_cache=True).past_key_values
        model(ids[:, 7:8], past_key_values=cache, use_cache=True)
        model(ids[:, 8:], past_key_values=cache, use_cache=True)
    expected, found = heads(whole), heads(steps)
    for name, table in expected.columns.items():
        torch.testing.assert_close(found.columns[name], table, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_cross_attention_is_left_out():
    model = next(a for a in architectures.ARCHITECTURES if a.name == "T5").build()
    inputs, _ = architectures.encoder_decoder("single")
    with saccade.record(model, keep="qk") as trace, torch.no_grad():
        model(**inputs)
    found = heads(trace)
    assert [site.count("EncDec") for site in found.sites] == [0, 0, 0, 0]
    assert [site.count("EncDec") for site in found.skipped] == [1, 1]
    assert heads(wrap(model, Untold())).entropy.shape == (2, 4)  # the encoder alone


def test_some_heads_of_a_trace():
    model = next(a for a in architectures.ARCHITECTURES if a.name == "BERT").build()
    ids = repeated(10, seed=2).inputs
    with saccade.record(model, keep="qk") as whole, torch.no_grad():
        model(**ids)
    with saccade.record(model, keep="qk", heads=[1, 3], layers=[1]) as part, torch.no_grad():
        model(**ids)
    expected, found = heads(whole), heads(part)
    assert found.head_numbers == [1, 3]
    for name, table in found.columns.items():
        torch.testing.assert_close(table, expected.columns[name][1:, [1, 3]], equal_nan=True, msg=name)


def test_layers_with_another_number_of_heads():
    class Net(ByHand):
        def forward(self, input_ids):
            super().forward(input_ids)
            x = one_hot(input_ids)[:, None].float()
            return saccade.attention(x, x, x)

    net = Net([position(-1)] * 2, [position(0)] * 2)
    found = heads(Pretrained("two", net, Untold(), None))
    assert found.sites == ["", "#1"]
    assert found.scores["previous"].isnan().tolist() == [[False, False], [False, True]]
    assert found.ranked("previous")[:2] == [(0, 0), (0, 1)]
    assert len(found.ranked()) == 3
    assert json.loads(found.to_json())["arrays"]["previous"]["values"][1][1] is None


# ---------------------------------------------------------------------------------------- long texts


def test_a_long_text_in_linear_memory():
    """32,768 tokens of 50 kinds: a boolean N x N would take 1 GiB, as intervals every row would have 655 runs."""
    n = 32_768
    ids = torch.randint(0, 50, (1, n), generator=torch.Generator().manual_seed(0))

    class Long(ByHand):
        def forward(self, input_ids):
            x = nn.functional.one_hot(input_ids % 8, 8)[:, None].float()
            return saccade.attention(x, x, x, mask=masks.causal())

    reading = Reading(ids, torch.ones_like(ids, dtype=torch.bool), None, n)
    reader = Pretrained("long", Long((), ()), Untold(), None)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    found = score_batches(reader, [], Batch({"input_ids": ids}, reading))
    assert _status("VmHWM") - before < 300 * 1024
    # By hand: a query's weights are e^s on tokens of the same remainder by 8, and 1 on others, s = 1 / sqrt(8).
    rows = torch.arange(n - 2000, n, 97)
    weights = torch.exp((ids[0] % 8 == (ids[0, rows] % 8)[:, None]) / math.sqrt(8)) * (torch.arange(n) <= rows[:, None])
    weights /= weights.sum(-1, keepdim=True)
    own = weights[torch.arange(len(rows)), rows]
    late = float(((weights * (ids[0] == ids[0, rows, None])).sum(-1) - own).mean())
    assert float(found.scores["duplicate"]) == pytest.approx(late, rel=0.05)


def _status(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# ---------------------------------------------------------------------------------------- what a result offers


def test_random_tokens_repeat_and_fit(model):
    loaded = load(model)
    made = random_repeats(loaded, None, 3, 0)
    ids, special = made.batch.inputs["input_ids"], loaded.tokenizer.all_special_ids
    assert ids.shape == (3, 64)
    assert made.length == 31
    assert torch.equal(ids[:, 1:32], ids[:, 32:63])
    assert ids[:, 0].unique().tolist() == [loaded.tokenizer.cls_token_id]
    assert not set(ids[:, 1:63].flatten().tolist()) & set(special)
    assert torch.equal(ids, random_repeats(loaded, None, 3, 0).batch.inputs["input_ids"])
    assert not torch.equal(ids, random_repeats(loaded, None, 3, 1).batch.inputs["input_ids"])
    short = random_repeats(loaded, 10, 1, 0).batch.inputs["input_ids"][0, 1:11]
    assert len(short.unique()) == 10


def test_frames_files_and_pictures(model, tmp_path):
    found = heads(load(model), "He left the rose by the river bank, by the bank.", patterns={"own": masks.prefix(2)})
    frame = found.to_frame()
    assert list(frame.columns) == ["layer", "head", *ROLES, "own", "distance", "entropy", "strongest"]
    assert len(frame) == 6
    assert frame.previous[3] == float(found.scores["previous"][1, 1])
    said = json.loads(found.to_json())
    assert said["coordinates"] == {"layer": [0, 1, 2], "head": [0, 1]}
    assert said["model"] == Path(model).name
    assert set(said["uniform"]) == {*ROLES, "own"}
    for ending in ("png", "svg", "pdf", "csv", "json", "npz"):
        found.save(tmp_path / f"roles.{ending}")
    assert (tmp_path / "roles.csv").read_text().startswith("layer,head,previous,next,first,separators,duplicate")
    with np.load(tmp_path / "roles.npz") as arrays:
        assert arrays["induction"].shape == (3, 2)
    axis = found.plot()
    assert axis.get_xlabel() == "head"


def test_what_stands_out():
    """The divergence of a score of 1 from 1 / N is ln N, and less than uniform is nothing."""
    found = heads(by_hand([position(-1)], [position(0)]), length=20)
    assert float(found.standing_out("previous")) == pytest.approx(math.log(40), rel=1e-4)
    assert float(found.standing_out("next")) == 0
    assert float(found.standing_out("local")) < float(found.standing_out("previous"))
    with pytest.raises(ArgumentError, match="no role 'last'; expected one of previous"):
        found.standing_out("last")
    with pytest.raises(ArgumentError, match="no role 'last'"):
        found.ranked("last")


def test_bad_input(model):
    loaded = load(model)
    for options, message in (
        ({"local": 0}, "local = 0: expected an integer of at least 1"),
        ({"batch": True}, "batch = True"),
        ({"length": 1}, "length = 1 random tokens: expected at least 2; tiny has positions for 31, twice"),
        ({"length": 40}, "length = 40"),
        ({"length": 2.5}, "length = 2.5: expected an integer"),
        ({"patterns": {"first": masks.prefix(1)}}, "'first' cannot name one"),
        ({"patterns": {"mine": torch.ones(2, 2)}}, "mine is Tensor; expected a mask"),
        ({"text": " "}, "the text is empty"),
        ({"text": []}, "expected a string, a list of strings"),
        ({"text": ["a", 3]}, "expected a string, a list of strings"),
        ({"text": "a " * 80}, "82 tokens long; tiny has positions for 64"),
    ):
        with pytest.raises(ArgumentError, match=message):
            heads(loaded, **options)
    assert "of 64 tokens" in heads(loaded, "a " * 80, truncate=True).read
    with pytest.raises(ArgumentError, match="a text needs a tokenizer"):
        heads(loaded.model, "a text")
    with pytest.raises(MaskError):
        heads(loaded, patterns={"mine": masks.dense(torch.ones(3, 3, dtype=torch.bool))})
    with pytest.raises(UnsupportedModelError, match="is no transformers"):
        heads(nn.Linear(2, 2))


def test_traces_that_do_not_tell(model):
    loaded = load(model)
    [batch] = text_batches(loaded, "a rose", 1, truncate=False)
    with saccade.record(loaded.model) as trace, torch.no_grad():
        loaded.model(**batch.inputs)
    with pytest.raises(NotRecordedError, match="keep='qk'"):
        heads(trace)
    with pytest.raises(ArgumentError, match="holds its own texts"):
        heads(trace, "a text")
    with saccade.record(loaded.model, keep="qk") as trace, torch.no_grad():
        loaded.model(inputs_embeds=torch.randn(1, 4, 16))
    with pytest.raises(NotRecordedError, match="tokens as ids"):
        heads(trace)


# ---------------------------------------------------------------------------------------- the command


def test_command(run, model, tmp_path):
    code, out, err = run("heads", "he left the bank , the bank .", "--model", model, "--sort", "previous", "--top", "4")
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert all(len(line) <= 80 for line in lines)
    assert "1 text of 10 tokens; duplicate and induction by repeated random tokens" in out.replace("\n", " ")
    short = ["prev", "next", "1st", "sep", "dup", "ind", "loc", "glob", "dist", "entr"]
    header = next(i for i, line in enumerate(lines) if line.startswith("layer head"))
    assert lines[header].split()[2:] == ["strongest", *short]
    shown = [int(line.split()[3]) for line in lines[header + 1 : header + 5]]
    assert shown == sorted(shown, reverse=True)
    assert "not by themselves an explanation" in " ".join(lines[-4:])
    code, out, _ = run("heads", "--model", model, "--json")
    assert code == 0
    assert json.loads(out)["read"].startswith("repeated random tokens (4 × 31")
    for name in ("r.png", "r.csv"):
        code, out, _ = run("heads", "--model", model, "--out", tmp_path / name)
        assert (code, out) == (0, f"wrote {tmp_path / name}\n")
    assert (tmp_path / "r.png").read_bytes()[1:4] == b"PNG"
    assert run("heads", "-", "--model", model, "--json", stdin=b"a rose")[0] == 0


def test_command_refuses(run, model, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for arguments, message in (
        (["--sort", "last"], "--sort last: expected one of strongest, previous"),
        (["--top", "0"], "--top 0: expected at least 1"),
        (["--out", "roles.xls"], "the ending says the format"),
        (["--json", "--out", "roles.json"], "not both"),
        ([" "], "the text is empty"),
        (["--file", latin], "is not UTF-8 text"),
        (["--file", tmp_path / "none.txt"], "No such file"),
        (["a", "--file", latin], "not both"),
        (["a " * 80], "82 tokens long"),
        (["--model", tmp_path], "holds no model"),
    ):
        code, _, err = run("heads", *arguments, *([] if "--model" in arguments else ["--model", model]))
        assert code == 2, arguments
        assert err.startswith("saccade: "), arguments
        assert message in err, arguments
