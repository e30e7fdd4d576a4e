"""No module of the package can run code that came as data: pickle, eval and their like are not there.

Weights are read from safetensors alone, code in model folders is never run, nothing listens on all addresses.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "plait").rglob("*.py"))
MODULES = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
    "multiprocessing",  # what its queues and pipes carry are pickles
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
OBJECTS = {
    *("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"),
    *("send_object_list", "recv_object_list"),
}
"""Of torch.distributed: they carry pickles."""
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "unsafe_load", "full_load", "load_pickle", "read_pickle", *OBJECTS}
RUNNERS = {"exec_module", "run_path", "run_module", "system", "popen", "ProcessPoolExecutor"}
LOADERS = {
    *(("yaml", "load"), ("yaml", "load_all"), ("torch", "load"), ("torch", "save"), ("jit", "load")),
    *(("hub", "load"), ("np", "load"), ("numpy", "load"), ("np", "save"), ("np", "savez")),
}
EVERYWHERE = ("0.0.0.0", "[::]", "tcp://*", "tcp://0.0.0.0", "tcp://[::]")
ARGUED = {
    # These give work to children of their own: what is pickled goes through a pipe that nobody else has.
    ("cli/plan.py", "ProcessPoolExecutor"),
    ("compression/evaluator.py", "ProcessPoolExecutor"),
    ("compression/evaluator.py", "multiprocessing"),
    ("recipe/objective.py", "ProcessPoolExecutor"),
    # A reward function is the operator's own code, which a recipe names.
    ("training/reward_function.py", "exec_module"),
}
"""What is there all the same, and why."""


def dangers(text: str) -> list[str]:
    """What a module does that it must not."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                imported = {(module, alias.name) for alias in names}
                found += [module] if module.split(".")[0] in MODULES else []
                found += [f"{owner}.{name}" for owner, name in sorted(imported & LOADERS)]
                found += sorted({alias.name for alias in names} & (RUNNERS | ATTRIBUTES))
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Call(func=ast.Attribute(attr="from_pretrained"), keywords=keywords):
                found += [f"from_pretrained without {lack}" for lack in unsaid(node, keywords)]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in LOADERS:
                found.append(f"{owner}.{name}")
            case ast.Attribute(attr=name) if name in ATTRIBUTES | RUNNERS:
                found.append(name)
            case ast.Constant(value=str(text)) if text.startswith(EVERYWHERE):
                found.append(f"listens on {text}")
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" as name, value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(name)
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                found.append("shell=True")
    return found


def unsaid(call: ast.Call, keywords: list[ast.keyword]) -> Iterator[str]:
    """What a call that reads a model's folder has to say, and does not; a configuration has no weights."""
    said = {keyword.arg: getattr(keyword.value, "value", None) for keyword in keywords}
    assert isinstance(call.func, ast.Attribute)
    if said.get("trust_remote_code") is not False:
        yield "trust_remote_code=False"
    if getattr(call.func.value, "id", "") != "AutoConfig" and said.get("use_safetensors") is not True:
        yield "use_safetensors=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_data_is_run(path: Path):
    place = path.relative_to(ROOT / "src" / "plait").as_posix()
    assert [danger for danger in dangers(path.read_text()) if (place, danger) not in ARGUED] == []


def test_what_is_argued_for_is_there():
    for place, danger in sorted(ARGUED):
        assert danger in dangers((ROOT / "src" / "plait" / place).read_text()), f"no {danger} in {place}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "eval('1')",
        "exec(text)",
        "import yaml\nyaml.load(text)",
        "from torch import load",
        "torch.load(path)",
        "socket.recv_pyobj()",
        "AutoModel.from_pretrained(x, trust_remote_code=True, use_safetensors=True)",
        "AutoModel.from_pretrained(x, use_safetensors=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=False)",
        "AutoConfig.from_pretrained(x)",
        "dist.all_gather_object(rows, row)",
        "from torch.distributed import broadcast_object_list",
        "import multiprocessing",
        "from concurrent.futures import ProcessPoolExecutor",
        "torch.save(x, path)",
        "spec.loader.exec_module(module)",
        "socket.bind(('0.0.0.0', 0))",
        "socket.bind('tcp://*:0')",
        "np.load(path)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_check_sees(line: str):
    assert dangers(line)


def test_the_check_lets_harmless_things_pass():
    assert dangers("import json\njson.load(file)\nmodel.eval()\nre.compile('x')\nyaml.safe_load(text)") == []
    assert dangers("AutoConfig.from_pretrained(x, trust_remote_code=False)\n'*'.join(x)") == []
