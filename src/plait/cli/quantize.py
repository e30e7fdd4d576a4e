"""`plait quantize MODEL OUT`: round a model's weights to 8 or 4 bits."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from plait.model.hub import resolve


def quantize(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, or an alias of `plait pull`.")],
    out: Annotated[Path, typer.Argument(help="New folder for the quantised model.")],
    weights: Annotated[str, typer.Option(help="int8 or int4.")] = "int8",
    group: Annotated[int, typer.Option(help="Inputs that share a scale in int4: 32, 64 or 128.")] = 128,
    lm_head: Annotated[bool, typer.Option("--lm-head", help="Quantise the output head as well.")] = False,
) -> None:
    """Write MODEL with weights of 8 or 4 bits into OUT, in the compressed-tensors format."""
    from plait.compression.quantize import QuantizeConfig
    from plait.compression.quantize import quantize as write

    done = write(resolve(model), out, QuantizeConfig(weights, group, lm_head))
    sys.stdout.write(f"{out}\n")
    before, after = f"{done.bytes_before / 1e6:.0f} MB", f"{done.bytes_after / 1e6:.0f} MB"
    sys.stderr.write(f"{done.layers} layers, {before} of weights to {after}\n")
