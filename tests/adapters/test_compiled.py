"""Runs `compiled_models.py` by itself: torch.compile cannot trace the type checks that this test run puts around saccade."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


def test_compiled_models():
    file = Path(__file__).with_name("compiled_models.py")
    # Warnings of the compiler about code that it leaves are no errors here.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
