"""What several packages' tests share: one tiny model folder for the whole run."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama."""
    torch = pytest.importorskip("torch", reason="needs the engine extra")
    assert torch
    from tests.tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models"))
