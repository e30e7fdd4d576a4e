"""`plait compress NETWORK`: the best policy for a budget, searched, trained and written."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from plait.spec.errors import UserError


def compress(
    network: Annotated[str, typer.Argument(help="resnet20, -56, -18, -50, vgg-small or mobilenetv2.")],
    out: Annotated[Path, typer.Option(help="Folder for labels, policy, network and report; resumes there.")],
    budget: Annotated[
        list[str],
        typer.Option(help="bops, macs or size as a share of the whole network's: bops=0.03. Repeatable."),
    ],
    train: Annotated[Path, typer.Option(help="Images: a parquet file (img, label), or class folders.")],
    test: Annotated[Path, typer.Option(help="Images for the final figures, in either form.")],
    reference: Annotated[
        Path | None, typer.Option(help="The network's weights (safetensors); trained in OUT if absent.")
    ] = None,
    pixels: Annotated[int, typer.Option(help="Height and width of images.")] = 32,
    classes: Annotated[int, typer.Option(help="Classes.")] = 10,
    width: Annotated[float, typer.Option(help="Multiplies the network's widths.")] = 1.0,
    train_images: Annotated[int, typer.Option(help="Images to train with.")] = 45_000,
    validation_images: Annotated[int, typer.Option(help="Images after those, to choose with.")] = 5_000,
    test_images: Annotated[int, typer.Option(help="Images for the final figures.")] = 10_000,
    epochs: Annotated[float, typer.Option(help="Of the reference's training.")] = 60.0,
    target: Annotated[str, typer.Option(help="simulated (any bits) or int8.")] = "simulated",
    labels: Annotated[int, typer.Option(help="Policies to measure.")] = 60,
    processes: Annotated[int, typer.Option(help="Measurements at a time.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the search and of its trainings.")] = 0,
) -> None:
    """Compress an image classifier to the budgets; run again after an interruption, it goes on."""
    from plait.compression.search import SearchConfig
    from plait.compression.tasks.classification import Classification
    from plait.compression.tasks.networks import NetworkConfig
    from plait.compression.tasks.train import TrainConfig
    from plait.compression.vision import CompressConfig, compress_network

    task = Classification(
        train_data=train,
        test_data=test,
        reference=reference or out / "reference.safetensors",
        network=NetworkConfig(network, classes, pixels, width),
        train_images=train_images,
        validation_images=validation_images,
        test_images=test_images,
        pretraining=TrainConfig(images=round(epochs * train_images), rate=0.1),
        short=TrainConfig(images=min(10_000, train_images), rate=0.02, teach=0.5),
        full=TrainConfig(images=5 * train_images, rate=0.04, teach=0.5),
        seed=seed,
        cache=out,
    )
    search = SearchConfig(labels=labels, first=max(8, labels // 3), seed=seed)
    budgets = tuple(_budget(text) for text in budget)
    report = compress_network(CompressConfig(task, out, budgets, target, search, processes))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def _budget(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise UserError(f"cannot read the budget {text!r}: write it like bops=0.03", "budget") from error
