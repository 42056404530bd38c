"""Shared test modules (conformance.py, nets.py, architectures.py) are importable from every test."""

import sys
from pathlib import Path

for folder in ("", "adapters", "trace"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
