"""`saccade record`, `info` and `verify` as a user meets them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import saccade
from saccade.trace.corpus import read_texts

ROSES, BANK = "He left the roses by the bank.", "She left the river bank, and the rose."


@pytest.fixture
def record(run, model, tmp_path):
    """`saccade record` with the tiny model into a folder of the test; exit code, stdout, stderr and the folder."""

    def call(*arguments, stdin=None):
        out = tmp_path / "run.zarr"
        return *run("record", *arguments, "-m", model, "-o", out, stdin=stdin), out

    return call


def test_a_file_is_a_text(record, run, tmp_path):
    (tmp_path / "a.txt").write_text(ROSES)
    (tmp_path / "b.txt").write_text(BANK)
    code, out, err, path = record(tmp_path / "a.txt", tmp_path / "b.txt", "--keep", "qk")
    assert (code, err) == (0, "")
    assert out == f"wrote {path}: 2 entries\n"
    trace = saccade.open_trace(path)
    assert [entry.sources for entry in trace] == [[str(tmp_path / "a.txt")], [str(tmp_path / "b.txt")]]
    assert trace[0].tokens.texts.text == [ROSES]
    assert trace[0].tokens.labels()[:4] == ["[CLS]", "He", "left", "the"]
    assert trace.metadata.keep == "qk"
    assert trace.metadata.name == "tiny"
    code, out, err = run("info", path)
    assert (code, err) == (0, "")
    assert "BertModel (tiny)" in out
    assert "complete" in out
    assert f"“{ROSES}”" in out
    assert "3 sites, 1 × 2 heads, 11 queries × 11 keys, float32" in out
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert "all right (2 entries" in out


def test_json_lines_lines_and_standard_input(record, tmp_path, run):
    lines = [json.dumps({"text": ROSES, "id": "roses"}), "", json.dumps(BANK), json.dumps({"text": "the bank"})]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    code, out, err, path = record(tmp_path / "many.jsonl", "--batch", "2")
    assert (code, err) == (0, "")
    trace = saccade.open_trace(path)
    assert [entry.sources for entry in trace] == [["roses", f"{tmp_path}/many.jsonl:3"], [f"{tmp_path}/many.jsonl:4"]]
    assert trace[0][0].shape[0] == 2
    found = json.loads(run("info", path, "--json")[1])
    assert found["entries"][0]["sources"] == ["roses", f"{tmp_path}/many.jsonl:3"]
    assert found["complete"] is True
    del out


def test_standard_input(record):
    code, _, err, path = record("--format", "lines", stdin=f"{ROSES}\n\n{BANK}\n".encode())
    assert (code, err) == (0, "")
    assert [entry.sources for entry in saccade.open_trace(path)] == [["standard input:1"], ["standard input:3"]]


def test_padding_changes_nothing(record, tmp_path, run, model):
    """A short text in a batch with a longer one attends as it does alone."""
    (tmp_path / "two.txt").write_text(f"{BANK}\n{ROSES}\n")
    *_, path = record(tmp_path / "two.txt", "--format", "lines", "--batch", "2", "--keep", "qk")
    assert run("record", "-m", model, "-o", tmp_path / "one.zarr", "--keep", "qk", stdin=ROSES.encode())[0] == 0
    both, alone = saccade.open_trace(path)[0], saccade.open_trace(tmp_path / "one.zarr")[0]
    length = len(alone.tokens)
    assert both.tokens.visible[1].sum() == length
    for site in alone.sites:
        padded = both[site].pattern.dense()[1, :, :length, :length]
        assert (padded - alone[site].pattern.dense()[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\\ud800 lone"}', "lone surrogate"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"body": "x"}', "an object whose member 'text' is one"),
        (b"7", "expected a string"),
    ],
)
def test_lines_that_hold_no_text(record, line, message):
    code, _, err, path = record("--format", "jsonl", stdin=line)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not path.exists()


def test_only_line_ends_end_lines(record, run):
    text = "he left\u2028the bank\x85now"
    code, _, err, path = record("--format", "jsonl", stdin=json.dumps({"text": text}, ensure_ascii=False).encode())
    assert (code, err) == (0, "")
    assert saccade.open_trace(path)[0].tokens.texts.text == [text]
    assert "\x85" not in run("info", path)[1]


def test_only_some_of_it(record, tmp_path):
    (tmp_path / "a.txt").write_text(ROSES)
    code, _, _, path = record(tmp_path / "a.txt", "--layers", "0,2-2", "--heads", "1", "--no-hidden")
    assert code == 0
    trace = saccade.open_trace(path)
    assert trace.sites == ["encoder.layer.0.attention.self", "encoder.layer.2.attention.self"]
    assert trace[0, 0].head_numbers == [1]
    assert not trace[0].metadata.hidden


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "all"], "expected one of statistics, qk, qkv"),
        (["--layers", "x"], "expected numbers and ranges from 0, as 0,3-5"),
        (["--layers", "5-3"], "expected numbers and ranges"),
        (["--layers", "9"], "BertModel has layers 0 to 2"),
        (["--heads", "7"], "has 2 heads"),
        (["--format", "xml"], "expected one of auto, text, lines, jsonl"),
        (["no/such.txt"], "no/such.txt: No such file"),
        (["--field", "body", "--format", "jsonl"], "is no JSON"),
        (["--batch", "0"], "batch = 0: expected at least 1"),
        (["."], ".: Is a directory"),
    ],
)
def test_wrong_requests(record, arguments, message):
    code, out, err, path = record(*arguments, stdin=ROSES.encode())
    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert not path.exists()


def test_texts_that_cannot_be_read_are_refused_before_anything_is_written(record, tmp_path):
    long = " ".join(["bank"] * 100)
    (tmp_path / "two.txt").write_text(f"{ROSES}\n{long}\n")
    code, _, err, path = record(tmp_path / "two.txt", "--format", "lines")
    assert code == 2
    assert "two.txt:2: the text is 102 tokens long" in err
    assert not path.exists()
    code, _, err, path = record(tmp_path / "two.txt", "--format", "lines", "--truncate")
    assert code == 0
    assert [len(entry.tokens) for entry in saccade.open_trace(path)] == [11, 64]


def test_what_is_there_is_not_overwritten(record, tmp_path):
    (tmp_path / "a.txt").write_text(ROSES)
    assert record(tmp_path / "a.txt")[0] == 0
    code, _, err, path = record(tmp_path / "a.txt")
    assert code == 2
    assert "--resume" in err
    assert record(tmp_path / "a.txt", "--resume")[0] == 0  # nothing is left to do
    code, _, err, _ = record(tmp_path / "a.txt", "--resume", "--keep", "qk")
    assert code == 2
    assert "keep 'statistics', not 'qk'" in err
    (tmp_path / "a.txt").write_text(BANK)
    code, _, err, _ = record(tmp_path / "a.txt", "--resume")
    assert code == 2
    assert "was made of other texts" in err
    assert len(saccade.open_trace(path)) == 1


def test_a_trace_of_nothing(run, tmp_path):
    for command in ("info", "verify"):
        code, _, err = run(command, tmp_path / "nothing.zarr")
        assert code == 2
        assert "there is nothing of that name" in err
        code, _, err = run(command, tmp_path)
        assert code == 2
        assert "is no trace" in err


def test_verify_says_what_is_wrong(record, run, tmp_path):
    (tmp_path / "a.txt").write_text(ROSES)
    *_, path = record(tmp_path / "a.txt")
    next((path / "entries/000000/stacks/0/entropy").glob("c.*")).write_bytes(b"")
    code, out, err = run("verify", path)
    assert (code, err) == (1, "")
    assert "stacks/0/entropy: c.0.0.0.0 is cut off" in out
    assert "1 wrong" in out


# ---------------------------------------------------------------------------------------- interrupted


MANY = 120


def start(model, tmp_path, *more, **options):
    (tmp_path / "many.txt").write_text("\n".join(f"{ROSES} {BANK}" for _ in range(MANY)))
    command = [sys.executable, "-m", "saccade.cli", "record", str(tmp_path / "many.txt"), "--format", "lines",
               "-m", model, "-o", str(tmp_path / "run.zarr"), *more]  # fmt: skip
    return subprocess.Popen(command, **options)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until an entry is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_recording_goes_on(number, model, tmp_path, run):
    out = tmp_path / "run.zarr"
    with start(model, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(out / "entries/000003", process)
        process.send_signal(number)
        said, complained = process.communicate(timeout=60)
    polite = number != signal.SIGKILL
    trace = saccade.open_trace(out)
    done = len(trace)
    assert 2 < done < MANY
    assert trace.complete == polite
    assert process.returncode == (130 if polite else -signal.SIGKILL)
    if polite:
        assert "finishing this entry" in complained
        assert f"{done} of {MANY} entries" in said
        assert trace.unfinished is None
    else:
        state = run("info", out)[1]
        assert "not closed" in state
        assert (trace.unfinished is None) == ("incomplete" not in state)
    assert run("verify", out)[0] == 0
    before = (out / "entries/000001/zarr.json").stat().st_mtime_ns
    with start(model, tmp_path, "--resume", stdout=subprocess.PIPE, text=True) as process:
        assert f"{MANY} entries" in process.communicate(timeout=120)[0]
    trace = saccade.open_trace(out)
    assert trace.complete
    assert [entry.sources[0].rpartition(":")[2] for entry in trace] == [str(i) for i in range(1, MANY + 1)]
    assert (out / "entries/000001/zarr.json").stat().st_mtime_ns == before  # not done again


def test_a_terminal_sees_how_far_it_is(model, tmp_path):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with start(model, tmp_path, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        seen = b""
        while process.poll() is None:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    seen += os.read(ours, 65536)
                except OSError:  # its other end is closed
                    break
        assert process.wait(60) == 0
    os.close(ours)
    text = seen.decode()
    assert f"of {MANY}" in text
    assert "tokens/s" in text
    assert f"of {MANY * 21:,} tokens" in text


def test_forms_of_files():
    content = {"a.jsonl": '{"text": "x"}\n', "b.txt": " one text\nof two lines ", "-": "in"}
    found = read_texts(["a.jsonl", "b.txt", "-"], content.__getitem__)
    assert [(text.name, text.text) for text in found] == [
        ("a.jsonl:1", "x"), ("b.txt", "one text\nof two lines"), ("standard input", "in")
    ]  # fmt: skip
