"""Every command and every line of Python in the guides runs, in order, as a reader would run them; on shorter texts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from guides import GUIDES, run, steps  # noqa: E402  (scripts/guides.py)

SHORTER = {"65536": "2048", "65,536": "2,048"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide, tmp_path):
    pytest.importorskip("matplotlib")
    text = guide.read_text()
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    assert {language for language, _ in steps(text)} == {"console", "python"}
    said, printed = run(text, tmp_path)
    CHECKS[guide.stem](said, printed.splitlines(), tmp_path)


def check_long(said: str, printed: list[str], folder: Path) -> None:
    assert "2,048 queries × 2,048 keys" in said
    assert "all right" in said
    places = eval(printed[1])  # noqa: S307  a list of numbers, printed by the guide
    assert len(places) == 2
    weight, total = map(float, printed[2].split())
    assert weight == pytest.approx(0.5, abs=0.1)  # half of it on itself, half on its twin
    assert total == pytest.approx(1, abs=1e-4)
    assert sorted(eval(printed[3])) == places  # noqa: S307  (the same)
    assert (folder / "long/map.png").stat().st_size > 10_000
    assert (folder / "long/window.png").stat().st_size > 10_000


def check_bank(said: str, printed: list[str], folder: Path) -> None:
    accuracy = eval(printed[0])  # noqa: S307  a list of numbers, printed by the guide
    assert accuracy[0] <= 0.5  # nothing is read yet
    assert accuracy[-1] == 1
    assert printed[2] == "[0.966, 0.75]"  # “bank” of the river and of the account, first and last layer
    assert [line.split()[-6] for line in printed[5:7]] == ["river", "river"]  # what moved it
    assert "account" in printed[7]
    assert printed[12] == "True"  # the parts sum to the vector
    assert "from 'account'" in printed[13]
    for text in ("Are the senses told apart?", "What made “bank” in layer 0", "previous", "set to zero"):
        assert text in said
    pictures = {picture.name for picture in (folder / "bank").iterdir()}
    assert pictures == set(re.findall(r"images/bank-([a-z]+\.png)", (ROOT / "docs/guides/bank.md").read_text()))
    for picture in pictures:
        assert (ROOT / f"docs/images/bank-{picture}").is_file()  # `make docs` has drawn it


def check_notebook(said: str, printed: list[str], folder: Path) -> None:
    del said
    assert printed == ["/pattern?site=2&head=5", "torch.Size([8, 8])"]
    assert (folder / "story.zarr").is_dir()


def check_gpu(said: str, printed: list[str], folder: Path) -> None:
    del folder
    device, shape = printed[0].split(maxsplit=1)
    assert f"{device}: chosen" in said
    assert (shape, printed[1]) == ("(1, 8, 64, 64)", "(1, 8, 2048, 128)")


CHECKS = {"65536-tokens": check_long, "bank": check_bank, "gpu": check_gpu, "notebook": check_notebook}
