"""`plait compress MODEL`: the best policy for a budget, searched and written; images are trained as well."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.spec.errors import UserError

if TYPE_CHECKING:
    from plait.compression.language import DecoderConfig

IMAGES = ("resnet20", "resnet56", "resnet18", "resnet50", "vgg-small", "mobilenetv2")
Budgets = tuple[tuple[str, float], ...]


def compress(
    model: Annotated[
        str, typer.Argument(help=f"{', '.join(IMAGES)}; or a decoder: a folder, a hub id, or an alias.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for labels, policy, model and report; resumes there.")],
    budget: Annotated[
        list[str],
        typer.Option(
            help="Of images bops, macs or size, of decoders size or kv, as a share of the whole's: size=0.3. "
            "Of decoders also tpot in milliseconds: tpot=6.5. Repeatable."
        ),
    ],
    train: Annotated[
        Path, typer.Option(help="Images: parquet (img, label) or class folders. Text: jsonl, txt.")
    ],
    test: Annotated[Path, typer.Option(help="For the final figures, in either form.")],
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
    target: Annotated[
        str | None,
        typer.Option(
            help="Of images simulated, int8 or onnx; of decoders plait, transformers, vllm, vllm-cpu or gguf."
        ),
    ] = None,
    bits: Annotated[str, typer.Option(help="Of decoders' weights.")] = "2,3,4,5,6,8",
    group: Annotated[int, typer.Option(help="Inputs of decoders that share a scale: 32, 64 or 128.")] = 64,
    depths: Annotated[str, typer.Option(help="Shares of a decoder's blocks to leave out.")] = "0",
    widths: Annotated[str, typer.Option(help="Shares of feed-forward widths to remove.")] = "0",
    heads: Annotated[str, typer.Option(help="Shares of KV heads to remove.")] = "0",
    kv_bits: Annotated[str, typer.Option(help="Of decoders' keys and values.")] = "16",
    tokens: Annotated[int, typer.Option(help="Tokens of text to measure a decoder with.")] = 1024,
    labels: Annotated[
        int | None,
        typer.Option(
            help="Policies to measure: of images 60, of decoders 28, and two for each kind of layers."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="Measurements of images at a time.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the search and of its trainings.")] = 0,
) -> None:
    """Compress an image classifier or a decoder to budgets; run again after an interruption, it goes on."""
    budgets = tuple(_budget(text) for text in budget)
    if model in IMAGES:
        network, counts = (model, classes, pixels, width), (train_images, validation_images, test_images)
        files = (train, test, reference or out / "reference.safetensors")
        told = (target or "simulated", labels or 60, processes, seed)
        report = _images(out, budgets, network, files, counts, epochs, told)
    else:
        from plait.compression.language import DecoderConfig

        levels = [_numbers(text) for text in (bits, depths, widths, heads, kv_bits)]
        choice = DecoderConfig(levels[0], group, *levels[1:])
        told = (target or "plait", labels or 28, tokens, seed)
        report = _decoder(out, budgets, model, (train, test), choice, told)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def _images(
    out: Path,
    budgets: Budgets,
    network: tuple[str, int, int, float],
    files: tuple[Path, Path, Path],
    counts: tuple[int, int, int],
    epochs: float,
    told: tuple[str, int, int, int],
) -> dict[str, Any]:
    from plait.compression.search import SearchConfig
    from plait.compression.tasks.classification import Classification
    from plait.compression.tasks.networks import NetworkConfig
    from plait.compression.tasks.train import TrainConfig
    from plait.compression.vision import CompressConfig, compress_network

    (train_data, test_data, reference), (train, validation, test) = files, counts
    target, labels, processes, seed = told
    task = Classification(
        train_data=train_data,
        test_data=test_data,
        reference=reference,
        network=NetworkConfig(*network),
        train_images=train,
        validation_images=validation,
        test_images=test,
        pretraining=TrainConfig(images=round(epochs * train), rate=0.1),
        short=TrainConfig(images=min(10_000, train), rate=0.02, teach=0.5),
        full=TrainConfig(images=5 * train, rate=0.04, teach=0.5),
        seed=seed,
        cache=out,
    )
    search = SearchConfig(labels=labels, first=max(8, labels // 3), seed=seed)
    return compress_network(CompressConfig(task, out, budgets, target, search, processes))


def _decoder(
    out: Path,
    budgets: Budgets,
    model: str,
    files: tuple[Path, Path],
    choice: "DecoderConfig",
    told: tuple[str, int, int, int],
) -> dict[str, Any]:
    from plait.compression.language_compress import LanguageCompressConfig, compress_language
    from plait.compression.language_search import LanguageSearchConfig
    from plait.compression.tasks.language import Language, text_of
    from plait.model.hub import resolve
    from plait.runtime.setup import ServeConfig
    from plait.runtime.step_times import DECODE, decode_ns

    target, labels, tokens, seed = told
    text = text_of(*files, tokens)
    task = Language(resolve(model), **text, cache=out, choice=choice, target=target, seed=seed)
    search = LanguageSearchConfig(labels=labels, first=max(8, labels // 2), seed=seed)

    def timed(folder: Path) -> float:
        return decode_ns(ServeConfig(model=str(folder)), DECODE)

    return compress_language(LanguageCompressConfig(task, out, budgets, search, timed))


def _budget(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise UserError(f"cannot read the budget {text!r}: write it like bops=0.03", "budget") from error


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"cannot read {text!r}: write numbers with commas, such as 4,8") from error
