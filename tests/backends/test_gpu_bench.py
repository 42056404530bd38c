"""`benchmarks/gpu.py` works, as far as that can be seen without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is an extra: pip install 'saccade[gpu]'")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def test_rehearsal():
    """Every section has its table, and every call of ours has run."""
    done = bench("--rehearse", "--bench")
    assert done.returncode == 0, done.stderr
    sections = done.stdout.split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [
        "Forward",
        "Backward",
        "Masks",
        "Decoding",
        "Asking",
        "A million tokens",
        "First calls",
    ]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) > 20
    table = dict(zip(*([cell.strip() for cell in row.split("|")[1:-1]] for row in rows[:2]), strict=True))
    assert float(table["saccade ms"]) > 0
    assert float(table["flash ms"]) > 0
    assert "saccade does not run" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bench"], "no GPU is found"),
        (["--rehearse"], "nothing to do: say --check, --tune or --bench"),
        (["--rehearse", "--bench", "--only", "forward, nothing"], "there is no 'nothing'"),
        (["--rehearse", "--tune", "--only", "forward"], "--only is of --bench"),
        (["--rehearse", "--bench", "--write"], "--write is of a whole --bench on a GPU"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, said):
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
