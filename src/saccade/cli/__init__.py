"""The command line: reads arguments, calls the library, turns its errors into messages.

Commands import what they need when they run, so that ``--help`` and ``--version`` answer at once.
Exit codes: 0 done, 1 what was to be verified is wrong, 2 the request cannot be served as it stands (the message says
why), 130 interrupted, 141 whoever read our output left.
"""

# In the order in which --help lists them.
# isort: off
from saccade.cli import show, explore, export, senses, contributions, heads, ablate, traces, tune, doctor  # noqa: F401

# isort: on
from saccade.cli.app import main

__all__ = ["main"]
