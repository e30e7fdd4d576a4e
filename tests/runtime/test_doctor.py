"""`plait doctor` on this machine, and on the same machine with something taken away."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the engine extra")
NOWHERE = "http://127.0.0.1:1"
"""Nothing listens there."""


def doctor(tmp_path: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the verb in a process of its own, with an empty cache and no hub."""
    env = {
        **os.environ,
        "PLAIT_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": NOWHERE,
        "HF_HUB_OFFLINE": "0",
        **changes,
    }
    command = [sys.executable, "-m", "plait", "doctor", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_it_says_what_there_is_and_that_serving_works(tmp_path: Path):
    done = doctor(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["able_to_serve"] is True
    found = checks(done)
    for name in ("plait", "python", "cpu", "kernels", "memory", "open files", "torch", "transformers"):
        assert found[name]["state"] != "missing"
        assert found[name]["value"]
    assert found["hub"]["state"] == found["models"]["state"] == "note"
    assert "plait pull" in found["models"]["hint"]
    assert not (tmp_path / "cache").exists(), "nothing is changed"


def test_every_problem_comes_with_a_hint(tmp_path: Path):
    done = doctor(tmp_path, PLAIT_KERNELS="reference")
    lines = done.stdout.splitlines()
    problems = [at for at, line in enumerate(lines) if line.startswith(("note", "missing"))]
    assert len(problems) >= 3  # kernels, models, hub
    assert all(lines[at + 1].strip().startswith("hint: ") for at in problems)
    assert lines[-1] == "plait serve can run here"


def test_without_torch_it_names_what_to_install(tmp_path: Path):
    absent = tmp_path / "absent" / "torch"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ModuleNotFoundError('No module named torch')\n")
    path = os.pathsep.join([str(absent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = doctor(tmp_path, "--json", PYTHONPATH=path)
    assert done.returncode == 1
    torch = checks(done)["torch"]
    assert (torch["state"], torch["hint"]) == ("missing", 'pip install "plait[engine]"')
    assert checks(done)["kernels"]["state"] != "missing", "kernels are named without torch too"


def test_kernels_that_do_not_exist_are_missing(tmp_path: Path):
    done = doctor(tmp_path, PLAIT_KERNELS="avx9000")
    assert done.returncode == 1
    assert "avx9000" in done.stdout
    assert done.stdout.splitlines()[-1] == "plait serve cannot run here"


def test_a_cache_that_cannot_be_written_is_noted(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    found = checks(doctor(tmp_path, "--json", PLAIT_CACHE=str(tmp_path / "file" / "cache")))
    assert found["cache"]["state"] == "note"
    assert "PLAIT_CACHE" in found["cache"]["hint"]


def test_models_in_the_cache_are_named(tmp_path: Path, tiny_llama: Path):
    place = tmp_path / "cache" / "models" / "someone--tiny"
    place.parent.mkdir(parents=True)
    place.symlink_to(tiny_llama)
    found = checks(doctor(tmp_path, "--json"))
    assert (found["models"]["value"], found["models"]["state"]) == ("someone/tiny", "fine")


def test_a_hub_that_answers_is_reachable(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        command = [sys.executable, "-m", "plait", "doctor", "--json"]
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
        running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        peer, _ = server.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        out, _ = running.communicate(timeout=120)
    hub = next(check for check in json.loads(out)["checks"] if check["name"] == "hub")
    assert (hub["state"], hub["value"]) == ("fine", f"{url} answers")
