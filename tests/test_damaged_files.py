"""Files that are not what they should be: whatever reads them says which file it is, in an error of ours.

Each case is a good file and what reads it. Bytes are cut, changed and put in; where the file is JSON or YAML,
values are replaced by others that have no place there.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from plait.cost.catalog import cost_named, shape_named
from plait.cost.scaling_base import ScalingBase
from plait.planner.cluster import read_cluster
from plait.runtime.engine import shape_of
from plait.runtime.prompts import read_rows
from plait.runtime.recipe import read_recipe
from plait.spec.errors import PlaitError
from plait.text.tokenizer import Tokenizer
from plait.workload.journal import JournalTail, read_journal
from plait.workload.placement import read_placement
from plait.workload.trace import read_trace
from tests.damage import EXAMPLES, damaged, reads
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A file by its name, what is in it, and what reads it, given the path."""

    name: str
    content: str
    read: Callable[[Path], Any]
    form: str = ""
    """json, lines (of JSON) or yaml, where values can be replaced; else bytes alone are damaged."""


def dumped(value: Any) -> str:
    return json.dumps(value, indent=1)


def journal() -> str:
    header = {"plait_journal": 1, "config": {}, "meta": {"world": "sim"}}
    request = {"id": 1, "prompt_tokens": 3, "max_tokens": 2}
    lines = [
        header,
        [1, ["WorkerUp", {"instance": 0, "epoch": 0, "slots": 64}], []],
        [
            2,
            ["Arrived", {"request": request}],
            [["Token", {"step": 1, "requests": [1]}], ["End", {"request": 1, "reason": "stop", "tokens": 1}]],
        ],
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def tail(path: Path) -> Any:
    return JournalTail(path).read()


def trace(form: str) -> Callable[[Path], Any]:
    return lambda path: read_trace(path, form)


FITTED = dict.fromkeys(
    (
        "prefill_ns",
        "prefill_token_ns",
        "prefill_square_ns",
        "prefill_cached_ns",
        "decode_ns",
        "decode_context_ns",
        "decode_row_ns",
    ),
    1.0,
)
DEGREE = {"sp": 1, "tp": 1, "fitted": FITTED, "chunks": [{"tokens": 8, "cached": 0, "ns": 9.0}]}
POINTS = [
    {"phase": phase, "x": x, "y": y, "ns": 5.0 + x + y}
    for phase in ("prefill", "decode")
    for x in (1, 2)
    for y in (0, 9)
]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 288,
    "max_position_embeddings": 512,
}
CLUSTER = "nodes: 4\ndevices_per_node: 8\ndevice: a100-80g\nlocal_gbps: 2400\nremote_gbps: 25\n"
MOONCAKE = {"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}
SHAREGPT = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}]
CASES = (
    Case("csv.csv", "arrival_s,prompt_tokens,output_tokens\n0,5,6\n1.5,7,8\n", trace("csv")),
    Case(
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930,5,6\n",
        trace("azure"),
    ),
    Case("burst.csv", "Timestamp,Request tokens,Response tokens\n5,472,18\n", trace("burstgpt")),
    Case("vidur.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,4,2\n", trace("vidur")),
    Case("mooncake.jsonl", json.dumps(MOONCAKE) + "\n", trace("mooncake"), "lines"),
    Case("sharegpt.json", dumped(SHAREGPT), trace("sharegpt"), "json"),
    Case(
        "distserve.json",
        dumped([{"start_time": 1.5, "prompt_len": 4, "output_len": 5}]),
        trace("distserve"),
        "json",
    ),
    Case("journal.jsonl", journal(), read_journal, "lines"),
    Case("growing.jsonl", journal(), tail, "lines"),
    Case("fitted.json", dumped(FITTED), lambda path: cost_named(str(path)), "json"),
    Case("table.json", dumped(POINTS), lambda path: cost_named(str(path)), "json"),
    Case(
        "table.csv",
        "phase,x,y,ns\n" + "".join(f"{p['phase']},{p['x']},{p['y']},{p['ns']}\n" for p in POINTS),
        lambda path: cost_named(str(path)),
    ),
    Case(
        "scaling.json",
        dumped({"model": "m", "machine": "c", "threads": 1, "dtype": "float32", "degrees": [DEGREE]}),
        ScalingBase.load,
        "json",
    ),
    Case("placement.yaml", "instances: [{role: prefill, tp: 2}, {role: decode}]", read_placement, "yaml"),
    Case("cluster.yaml", CLUSTER, read_cluster, "yaml"),
    Case("config.json", dumped(CONFIG), lambda path: shape_named(str(path)), "json"),
    Case("recipe.yaml", (ROOT / "recipes" / "grpo-addition.yaml").read_text(), read_recipe, "yaml"),
    Case("prompts.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n', lambda path: list(read_rows(path)), "lines"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_good_file_is_read(case: Case, tmp_path: Path):
    path = tmp_path / case.name
    path.write_text(case.content)
    case.read(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_damaged_file_is_named(case: Case, tmp_path: Path):
    path = tmp_path / case.name

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(case.content, case.form))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        reads(case.read, path, case.name)

    read()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0", b"[" * 100_000, b"null", b"{}", b"[]"],
    ids=["empty", "bytes", "deep", "null", "{}", "[]"],
)
def test_a_file_of_something_else_is_named(case: Case, content: bytes, tmp_path: Path):
    path = tmp_path / case.name
    path.write_bytes(content)
    reads(case.read, path, case.name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_folder_in_its_place_is_named(case: Case, tmp_path: Path):
    path = tmp_path / case.name
    path.mkdir()
    with pytest.raises(PlaitError, match=case.name):
        case.read(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the words of a model folder are read from."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(dumped(CONFIG | {"eos_token_id": 256}))
    (folder / "generation_config.json").write_text(dumped({"eos_token_id": [256, 257]}))
    (folder / "special_tokens_map.json").write_text(dumped({"eos_token": {"content": "<|end|>"}}))
    Tokenizer.load(folder)
    shape_of(folder)
    return folder


WORDS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "config.json",
)


@pytest.mark.parametrize("name", WORDS)
def test_a_damaged_file_of_a_model_folder_is_named(model: Path, name: str, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(model, folder)

    @settings(
        max_examples=EXAMPLES // 2, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damaged((model / name).read_text(), "json"))
    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        reads(Tokenizer.load, folder, name)
        if name == "config.json":
            reads(shape_of, folder, name)

    read()


def test_a_template_that_cannot_be_compiled_is_named(model: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(model, folder)
    path = folder / "chat_template.jinja"
    for template in (b"{% for %}", b"\xff", b"{{ " + b"(" * 5000, b"{{ 1" + b"0" * 5000 + b" }}"):
        path.write_bytes(template)
        reads(Tokenizer.load, folder, path.name)
