"""Every command and every line of Python in the guides runs, in order, as a reader would run them; on shorter texts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
SHORTER = {"65536": "2048", "65,536": "2,048"}


def steps(guide: str) -> list[tuple[str, str]]:
    """The blocks that are to be run, with their language. Those marked `sh` install things."""
    return re.findall(r"^```(console|python)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_runs(guide, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    text = guide.read_text()
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    found = steps(text)
    assert {language for language, _ in found} == {"console", "python"}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    said = ""
    for language, block in found:
        for command in block.splitlines() if language == "console" else ():
            said += run(shlex.split(command), tmp_path, environment)
    python = "\n".join(block for language, block in found if language == "python")
    printed = run([sys.executable, "-c", python], tmp_path, environment)
    CHECKS[guide.stem](said, printed.splitlines(), tmp_path)


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


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


CHECKS = {"65536-tokens": check_long}
