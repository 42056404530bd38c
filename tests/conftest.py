"""What tests share: modules (conformance.py, nets.py, architectures.py) that can be imported, the command line."""

import io
import sys
from pathlib import Path

import pytest

for folder in ("", "adapters", "analysis", "trace"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    import tiny_models

    return str(tiny_models.save(tmp_path_factory.mktemp("cli") / "tiny"))


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the command line in this process; returns exit code, stdout and stderr."""
    from saccade import cli

    def call(*arguments, stdin=None):
        monkeypatch.setattr(sys, "argv", ["saccade", *map(str, arguments)])
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        return leaving.value.code or 0, *capfd.readouterr()

    return call
