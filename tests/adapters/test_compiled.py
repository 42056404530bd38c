"""Runs `compiled_models.py` by itself: torch.compile cannot trace the type checks that this test run puts around us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")


def test_compiled_models():
    file = Path(__file__).with_name("compiled_models.py")
    # No plugin's options, and what the compiler says about code that leaves its graph is no error.
    options = ("-q", "-W", "ignore", "-o", "addopts=", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
