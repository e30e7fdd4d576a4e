"""No module of the package can run code that came as data: pickle, eval and their like are not there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "plait").rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "unsafe_load", "full_load", "load_pickle"}
LOADERS = {("yaml", "load"), ("yaml", "load_all"), ("torch", "load"), ("np", "load"), ("numpy", "load")}


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
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.append(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in LOADERS:
                found.append(f"{owner}.{name}")
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                found.append(name)
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" as name, value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(name)
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                found.append("shell=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_data_is_run(path: Path):
    assert dangers(path.read_text()) == []


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
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "np.load(path)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_check_sees(line: str):
    assert dangers(line)


def test_the_check_lets_harmless_things_pass():
    assert dangers("import json\njson.load(file)\nmodel.eval()\nre.compile('x')\nyaml.safe_load(text)") == []
