"""`saccade contributions` as a user meets it."""

import json

import pytest

TEXT = "He left the roses by the bank."


def test_command(run, model, tmp_path):
    code, out, err = run("contributions", TEXT, "--token", "bank", "--layer", 1, "-m", model)
    assert (code, err) == (0, "")
    assert "What made “bank” in layer 1" in out
    assert "residual" in out
    shares = [
        float(line.split("share")[1].strip(" %")) for line in out.splitlines() if "share " in line and "length" in line
    ]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert max(map(len, out.splitlines())) <= 80

    assert run("contributions", TEXT, "--token=-1", "-m", model)[0] == 0
    code, out, _ = run("contributions", TEXT, "--token", 3, "-m", model, "--json")
    said = json.loads(out)
    assert (code, said["kind"], said["token"]) == (0, "Contributions", 3)
    assert said["arrays"]["norm"]["dims"] == ["head", "key"]
    pytest.importorskip("matplotlib")
    assert run("contributions", TEXT, "--token", "bank", "-m", model, "-o", tmp_path / "c.png")[0] == 0
    assert (tmp_path / "c.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --token WORD"),
        (["--token", "river"], "there is no 'river'"),
        (["--token", "roses"], "is 2 tokens"),
        (["--token", "99"], "there are 11 tokens"),
        (["--token=-12"], "there are 11 tokens"),
        (["--token", "bank", "--layer", "x"], "--layer x: expected a number from 0"),
        (["--token", "the:3"], "occurs 2 times"),
        (["--token", "bank", "--layer", "3"], "has layers 0 to 2"),
        (["--token", "bank", "--out", "x.txt"], "the ending says the format"),
        (["--token", "bank", "--out", "x.png", "--json"], "not both"),
    ],
)
def test_what_does_not_fit_ends_in_a_message(run, model, options, message):
    code, out, err = run("contributions", TEXT, "-m", model, *options)
    assert (code, out) == (2, "")
    assert message in err
