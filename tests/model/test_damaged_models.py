"""Model folders with damaged files: they are refused before anything is loaded, and the file is named."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from plait.model.config import ModelConfig
from plait.model.load import end_ids, load_config, load_module
from plait.model.lora_folder import CONFIG, WEIGHTS
from plait.model.lora_folder import files_of as files_of_adapter
from plait.model.model import Model
from plait.model.weights_file import files_of
from plait.spec.errors import PlaitError, UserError
from tests.adapters import adapter, write_adapter
from tests.damage import EXAMPLES, damaged, reads
from tests.scale import scaled
from tests.tiny import tiny_folder


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_damaged_configuration_is_an_error_that_names_the_model(folder, name):
    whole = (folder / name).read_text()

    def read(_: Path) -> None:
        end_ids(folder, load_config(folder))

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(whole, "json"))
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        reads(read, folder, folder.name)

    check()


@settings(max_examples=scaled(400), deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=damaged("x" * 400, ""))
def test_a_damaged_header_of_weights_is_named(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        files_of(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_that_are_cut_off_are_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file.*again"):
        load_module(folder, load_config(folder), None, None)


def test_an_index_that_names_what_is_not_there_is_named(folder):
    index = folder / "model.safetensors.index.json"
    names = dict(files_of(folder))
    for told in ("[", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [1]}', '{"weight_map": {"a": "b"}}'):
        index.write_text(told)
        with pytest.raises(UserError, match=index.name):
            files_of(folder)
    index.write_text(json.dumps({"weight_map": names}))
    assert files_of(folder) == names
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../../other.safetensors")}))
    with pytest.raises(UserError, match="where it is not"):
        files_of(folder)


def test_weights_of_other_sizes_and_missing_ones_are_named(folder):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    fewer = {key: weight for key, weight in weights.items() if key != name}
    for changed in (fewer, {**weights, name: weights[name][:8].clone()}):
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(PlaitError, match=r"lacks weights|other sizes"):
            load_module(folder, load_config(folder), weights[name].dtype, None)


@pytest.mark.parametrize("tp", [1, 2])
async def test_an_engine_says_which_file_is_damaged_and_starts_nothing_again(tmp_path, tp):
    from plait.runtime.setup import ServeConfig, open_engine

    folder = tiny_folder(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    engine = open_engine(ServeConfig(str(folder), kv_tokens=256, tp=tp))
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        await engine.start()


def test_a_damaged_adapter_is_an_error_that_names_it(folder, tmp_path):
    """Its settings, and the file of its factors: byte by byte, and value by value."""
    own = write_adapter(folder, tmp_path / "adapter", targets=("q_proj",))
    model = Model(ModelConfig(str(folder), slots=64, page=16))
    config, weights = files_of_adapter(own)

    def read(_: Path) -> None:
        model.adapters.load(adapter(own, 1))
        model.adapters.drop(1)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(config.decode(), "json"))
    def settings_are(content: bytes) -> None:
        (own / CONFIG).write_bytes(content)
        reads(read, own, "adapter")

    @settings(max_examples=scaled(400), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 800) | st.integers(0, len(weights)), st.binary(max_size=4), st.integers(0, 4))
    def factors_are(at: int, new: bytes, gone: int) -> None:
        (own / WEIGHTS).write_bytes(weights[:at] + new + weights[at + gone :])
        reads(read, own, "adapter")

    settings_are()
    (own / CONFIG).write_bytes(config)
    for kept in (0, 4, 100, -1):
        (own / WEIGHTS).write_bytes(weights[:kept])
        with pytest.raises(UserError, match="no whole safetensors file"):
            read(own)
    factors_are()
