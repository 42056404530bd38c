"""What README.md says is what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_headline_comes_from_the_table():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from harness import headline
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    table = (ROOT / "docs" / "benchmarks" / "attention.md").read_text(encoding="utf-8")
    assert headline(table) in (ROOT / "README.md").read_text(encoding="utf-8"), "run make bench"
