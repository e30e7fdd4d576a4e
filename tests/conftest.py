"""What several packages' tests share: one tiny model folder for the whole run, workers that start soon."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama."""
    torch = pytest.importorskip("torch", reason="needs the engine extra")
    assert torch
    from tests.tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[object]:
    """What workers are forked from."""
    from tests.zygote import Zygote

    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def quick_workers(zygote: object) -> Iterator[None]:
    """Engines of this module start their workers by a fork."""
    from plait.runtime import setup
    from tests.zygote import ForkLauncher

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "LocalLauncher", lambda: ForkLauncher(zygote))
        yield
