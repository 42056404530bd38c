"""How fast is attention on this machine's CPU, beside its peers in the same run, and what does asking cost?

    python benchmarks/attention.py [--quick] [--only forward,decoding] [--write]

Prints tables; `--write` puts them into docs/benchmarks/attention.md.
"""

from __future__ import annotations

import argparse

import decoding
import forward
import models
import observing
import torch
import training
import windows
from harness import Effort, Section, conditions, progress, publish, statement_seconds

THREADS = 2  # more where the script says so


def imports(effort: Effort) -> Section:
    """What `import saccade` costs once every public name was used, as names are imported on first use."""
    del effort
    progress("import")
    every_name = "import saccade; [getattr(saccade, n) for n in saccade.__all__]"
    seconds = statement_seconds(every_name, after="import torch")
    return Section(f"`import saccade` with all its public names takes {seconds:.3f} s beyond `import torch`.")


SECTIONS = {
    "forward": forward.run,
    "window": windows.run,
    "decoding": decoding.run,
    "training": training.run,
    "small": forward.small,
    "models": models.run,
    "statistics": observing.run,
    "stored": observing.stored,
    "memory": observing.memory,
    "import": imports,
}


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths and turns")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--write", action="store_true", help="keep the result in docs/benchmarks")
    found = parser.parse_args()
    found.only = found.only.split(",") if found.only else list(SECTIONS)
    if unknown := [name for name in found.only if name not in SECTIONS]:
        parser.error(f"--only names {', '.join(unknown)}: expected some of {', '.join(SECTIONS)}")
    if found.write and len(found.only) < len(SECTIONS):
        parser.error("--write keeps a whole run: leave out --only")
    return found


def main() -> None:
    """Print the tables."""
    chosen = options()
    torch.set_num_threads(THREADS)
    effort = Effort(quick=chosen.quick)
    found = [SECTIONS[name](effort) for name in SECTIONS if name in chosen.only]
    sentences = [section.short for section in found if section.short]
    parts = []
    if sentences:
        means = "Geometric means of the ratios in the tables, with their range in brackets."
        parts += ["## In short", means, "\n".join(f"- {sentence}" for sentence in sentences)]
    how = (
        f"Conditions: {conditions()}. Medians of up to {effort.rounds} alternating runs; a ratio above 1 means Saccade "
        "is faster, a bold one misses its target."
    )
    parts += ["## Measured", how, *(section.text for section in found)]
    publish("attention", "Attention on the CPU", "\n\n".join(parts), write=chosen.write)


if __name__ == "__main__":
    main()
