"""`saccade doctor`: what works here, and why."""

from __future__ import annotations

import typer

from saccade.cli.app import app, command


@app.command()
@command
def doctor() -> None:
    """Say what is installed, what is missing, and which backend computes attention, and why."""
    from saccade.views import diagnosis

    for title, lines in diagnosis.examine().items():
        typer.echo(title)
        for name, value in lines:
            typer.echo(f"  {name:<14}{value}")
