"""How far each architecture's output through Saccade is from eager's, and SDPA's for comparison.

    python benchmarks/agreement.py [--write]

Tiny random models, float32, the largest absolute difference on valid positions.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
import transformers
from harness import conditions, publish, table

from saccade.adapters.huggingface import attach

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "adapters"))

from architectures import Architecture, cases, largest_error, run


def errors(architecture: Architecture, case: str) -> tuple[float, float | None]:
    """Largest difference from eager, of Saccade and of SDPA (None where SDPA cannot do it)."""
    model = architecture.build()
    inputs, valid = architecture.inputs(case)
    expected = run(model, inputs, valid)
    with attach(model):
        ours = largest_error(run(model, inputs, valid), expected)
    theirs = None
    with contextlib.suppress(ValueError):
        model.set_attn_implementation("sdpa")
        theirs = largest_error(run(model, inputs, valid), expected)
    return ours, theirs


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for architecture, case in cases():
        ours, theirs = errors(architecture, case)
        sdpa = "not supported" if theirs is None else f"{theirs:.1e}"
        rows.append([architecture.name, case, f"{ours:.1e}", sdpa])
    what = (
        "Tiny random models, float32: the largest absolute difference of the output from eager attention's, on valid "
        f"positions. Conditions: transformers {transformers.__version__}, {conditions()}."
    )
    text = f"{what}\n\n{table(['architecture', 'input', 'Saccade', 'SDPA'], rows)}"
    publish("agreement", "Agreement with eager attention", text, write="--write" in sys.argv)


if __name__ == "__main__":
    main()
