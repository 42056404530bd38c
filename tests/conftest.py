"""What tests share: modules (conformance.py, nets.py, architectures.py) that can be imported, the command line."""

import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch

for folder in ("", "adapters", "analysis", "trace"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# Triton finds out when kernels are imported whether it is to interpret them: it does where there is no GPU.
INTERPRET = "TRITON_INTERPRET"
if not torch.cuda.is_available():
    os.environ[INTERPRET] = "1"
    with suppress(ImportError):
        import_module("saccade.backends.gpu_gradients")
    del os.environ[INTERPRET]


def pytest_generate_tests(metafunc):
    """Run a backend's suite with the shapes that it names."""
    shapes = getattr(metafunc.cls, "shapes", None)
    if shapes is not None and "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", shapes, ids=str)


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
