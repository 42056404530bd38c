"""`saccade tune`: find the fastest tiles of the GPU kernels on this machine's GPU."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command

if TYPE_CHECKING:
    from saccade.backends.gpu_tuning import Measured

DTYPES = ("bfloat16", "float16", "float32")


@app.command()
@command
def tune(
    width: Annotated[
        list[int] | None, typer.Option(help="Of heads; may be repeated.", show_default="64 and 128")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Of the numbers: {', '.join(DTYPES)}.")] = "bfloat16",
) -> None:
    """Measure the GPU kernels' tiles on this GPU and keep the fastest; takes minutes, once."""
    import torch

    from saccade.backends import gpu, gpu_tiles, gpu_tuning

    widths = width or [64, 128]
    if not all(0 < one <= gpu.WIDEST for one in widths):
        raise errors.ArgumentError(f"--width {' '.join(map(str, widths))}: expected 1 to {gpu.WIDEST}")
    if dtype not in DTYPES:
        raise errors.ArgumentError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    if not torch.cuda.is_available():
        raise errors.BackendError("no GPU is found: saccade doctor says what there is")
    device = torch.device("cuda", torch.cuda.current_device())
    reason = gpu.unavailable(device)
    if reason is not None:
        raise errors.BackendError(f"the GPU kernels do not run here: {reason}")
    gpu_tiles.keep_tuned(device, {})  # better now than after minutes, if that is not possible
    typer.echo(gpu_tiles.gpu_name(device))
    measured = gpu_tuning.tune(device, getattr(torch, dtype), widths)
    for place, some in itertools.groupby(measured, key=lambda one: one.place):
        typer.echo(f"{place.kernel}, {8 * place.itemsize} bits, heads {place.width} wide")
        found = []
        for one in some:
            found.append(one)
            typer.echo(f"  {describe(one)}")
        gpu_tiles.keep_tuned(device, gpu_tuning.fastest(found))
    typer.echo(f"kept in {gpu_tiles.tuned_file()}")


def describe(one: Measured) -> str:
    """A candidate and what it takes, on one line."""
    tiles = one.tiles
    more = [name for name in ("descriptors", "persistent") if getattr(tiles, name)]
    shape = f"{tiles.rows} x {tiles.keys}, {tiles.warps} warps, {tiles.stages} stages{''.join(f', {m}' for m in more)}"
    took = "does not fit" if math.isnan(one.milliseconds) else f"{one.milliseconds:.3f} ms"
    return f"{shape:<56}{took}{'  first choice of the table' if one.is_first_choice else ''}"
