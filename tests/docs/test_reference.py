"""The reference is built from the code, whole."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.blocks import ROOT

pytest.importorskip("torch", reason="needs the engine extra")


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    written: list[Path] = builder.build(tmp_path_factory.mktemp("reference"))
    return {path.name: path.read_text() for path in written}


def test_every_verb_has_its_options(pages: dict[str, str]):
    for verb in (
        "serve",
        "pull",
        "chat",
        "simulate",
        "replay",
        "doctor",
        "run",
        "bench serve",
        "plan",
        "plan rlhf",
    ):
        assert f"## `plait {verb}`" in pages["cli.md"]
    said = "Instances; each has all weights, in --tp x --pp processes."
    assert f"| `--instances` | `1` | {said} |" in pages["cli.md"]


def test_routes_metrics_and_settings_are_there(pages: dict[str, str]):
    assert "## `POST /v1/chat/completions`" in pages["http.md"]
    assert "| `messages` |" in pages["http.md"]
    assert "| `vllm:num_preemptions_total` | counter |" in pages["metrics.md"]
    assert "## `plait.serving.admission.AdmissionConfig`" in pages["config.md"]
    assert "class `GlobalManager`" in pages["python.md"]


def test_every_setting_says_what_it_is(pages: dict[str, str]):
    rows = [line for line in pages["config.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    mute = [row for row in rows if row.endswith("|  |")]
    assert len(mute) <= len(rows) // 6, mute  # a field whose name and type say it all needs no words


def test_the_index_leads_to_every_page(pages: dict[str, str]):
    for name in pages:
        assert name == "llms.txt" or f"docs/reference/{name}" in pages["llms.txt"]
    for document in ("README.md", "docs/architecture.md", "docs/glossary.md"):
        assert f"({document})" in pages["llms.txt"]
