"""Writes docs/reference from the code: `python docs/build.py`, or `make docs`.

Nothing in it is written by hand: verbs come from the command line's own help, routes from the
application's OpenAPI document, metrics from the server's registry, the rest from docstrings.
"""

import ast
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import typer
from fastapi import FastAPI

import plait
from plait.cli.main import app as command_line
from plait.runtime.setup import ServeConfig, open_engine
from plait.server.app import create_app
from plait.server.config import ServerConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "plait"
CONFIG_JSON = (
    '{"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8, '
    '"vocab_size": 2, "max_position_embeddings": 64}'
)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


# ---- verbs -------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every verb with its arguments and options."""
    parts = ["# Command line\n"]
    for name, command in _verbs("plait", typer.main.get_command(command_line)):
        parts += [f"## `{name}`\n", f"{command.help or ''}\n"]
        rows = [_option(parameter) for parameter in command.params if parameter.name != "help"]
        parts.append(table(("option", "default", "meaning"), rows) if rows else "No options.\n")
    return "\n".join(parts)


def _verbs(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands below `command`. Typer brings a click of its own, so no class of it is named here."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for part in inner:
        alone = part == getattr(command, "alone", None)
        yield from _verbs(name if alone else f"{name} {part}", inner[part])


def _option(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`", "required" if parameter.required else "", parameter.help or ""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = "" if parameter.default is None else f"`{parameter.default}`"
    return names, default, parameter.help or ""


# ---- HTTP and metrics --------------------------------------------------------------------------------


def make_app(folder: Path) -> FastAPI:
    """The application as `plait serve` makes it, in front of an engine that is never started."""
    (folder / "config.json").write_text(CONFIG_JSON)
    (folder / "tokenizer_config.json").write_text("{}")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    engine = open_engine(ServeConfig(model=str(folder), name="MODEL", kv_tokens=64))
    return create_app(engine, ServerConfig())


def http_page(document: dict[str, Any]) -> str:
    """Every route with the fields of its body and its answers."""
    parts = ["# HTTP\n", "The same as `GET /openapi.json` of a running server.\n"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts += [f"## `{method.upper()} {path}`\n", f"{route.get('description', route['summary'])}\n"]
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "schema" in body:
                rows = list(_fields(document, body["schema"]))
                parts.append(table(("field", "type", "default", "meaning"), rows))
            answers = (f"`{status}` {reply['description']}" for status, reply in route["responses"].items())
            parts.append(f"Answers: {', '.join(answers)}.\n")
    return "\n".join(parts)


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    body = _resolve(document, schema)
    required = body.get("required", [])
    for name, field in body.get("properties", {}).items():
        default = "required" if name in required else f"`{field.get('default')}`"
        yield f"`{name}`", _type(document, field), default, field.get("description", "")


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return found


def _type(document: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_type(document, option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(document, schema.get('items', {}))}"
    return str(schema.get("type", "anything"))


def metrics_page(app: FastAPI) -> str:
    """Every metric family that `/metrics` exposes."""
    rows = []
    for family in app.state.front.metrics.registry.collect():
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append((f"`{name}`", family.type, ", ".join(labels), family.documentation))
    head = "# Metrics\n\nWhat `GET /metrics` exposes, in the text format of Prometheus.\n\n"
    return head + table(("metric", "type", "labels", "meaning"), rows)


# ---- docstrings --------------------------------------------------------------------------------------


def config_page() -> str:
    """Every configuration dataclass with its fields."""
    parts = ["# Configuration\n", "The records that options of the command line become.\n"]
    for module, tree in _modules():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                parts += [f"## `{module}.{node.name}`\n", f"{ast.get_docstring(node) or ''}\n"]
                parts.append(table(("field", "type", "default", "meaning"), _settings(node)))
    return "\n".join(parts)


def _settings(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        said = after.value if isinstance(after, ast.Expr) else None
        words = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
        default = f"`{ast.unparse(field.value)}`" if field.value else "required"
        yield f"`{ast.unparse(field.target)}`", f"`{ast.unparse(field.annotation)}`", default, words


def python_page() -> str:
    """Every public class and function, package by package, as its docstring describes it."""
    parts = ["# Python\n"]
    for module, tree in _modules():
        if module.startswith("plait.cli."):
            continue  # a page of its own
        parts += [f"## `{module}`\n", f"{ast.get_docstring(tree) or ''}\n"]
        for node in tree.body:
            parts += _entry(node, "")
    return "\n".join(parts)


def _entry(node: ast.stmt, owner: str) -> list[str]:
    """A class with its public methods, or a function; nothing for what is private or says nothing."""
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        inner = [text for method in node.body for text in _entry(method, f"{node.name}.")]
        return [f"### class `{node.name}`\n", f"{ast.get_docstring(node) or ''}\n", *inner]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        heading = f"#### `{owner}{node.name}({ast.unparse(node.args)}){returns}`\n"
        return [heading, f"{ast.get_docstring(node) or ''}\n"]
    return []


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ("plait", *path.relative_to(SOURCE).with_suffix("").parts)
        yield ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())


# ---- all pages ---------------------------------------------------------------------------------------


def index(pages: Iterable[str]) -> str:
    """One line per page, with its address from the repository's root, for people and programs."""
    written = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
    lines = ["# Plait", "", f"> {plait.__doc__}", ""]
    for path in written:
        title = path.read_text().splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.relative_to(ROOT)})")
    lines += ["", "## Reference", "", *(f"- [{page}](docs/reference/{page})" for page in pages)]
    return "\n".join(lines) + "\n"


def build(target: Path) -> list[Path]:
    """Write every page below `target`; returns what was written."""
    with tempfile.TemporaryDirectory() as folder:
        app = make_app(Path(folder))
        http, metrics = http_page(app.openapi()), metrics_page(app)
    pages = {
        "cli.md": cli_page(),
        "http.md": http,
        "metrics.md": metrics,
        "config.md": config_page(),
        "python.md": python_page(),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, text in (pages | {"llms.txt": index(pages)}).items():
        (target / name).write_text(text)
    return [target / name for name in (*pages, "llms.txt")]


if __name__ == "__main__":
    for written in build(ROOT / "docs" / "reference"):
        sys.stdout.write(f"{written.relative_to(ROOT)}\n")
