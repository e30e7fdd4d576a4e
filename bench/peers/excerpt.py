"""Runs part of a method as it stands in an installed package: trainers compute much of their maths inline."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any


def run(method: Callable[..., Any], first: str, last: str, given: dict[str, Any]) -> dict[str, Any]:
    """Names after running `method` from the statement that sets `first` to the last one that sets `last`.

    `given` are the local names that those statements read. Raises LookupError if there are none.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    for body in _bodies(tree):
        begins = [place for place, statement in enumerate(body) if first in _targets(statement)]
        ends = [
            place
            for place, statement in enumerate(body)
            if any(last in _targets(inner) for inner in ast.walk(statement))
        ]
        if begins and ends and ends[-1] >= begins[0]:
            chosen = ast.Module(body[begins[0] : ends[-1] + 1], [])
            names = vars(sys.modules[method.__module__]) | given
            exec(compile(chosen, method.__qualname__, "exec"), names)
            return names
    raise LookupError(f"{method.__qualname__} has no statements from {first} to {last}")


def _bodies(tree: ast.AST) -> list[list[ast.stmt]]:
    """Every block of statements, inner ones last."""
    return [
        block
        for node in ast.walk(tree)
        for name in ("body", "orelse")
        if isinstance(block := getattr(node, name, None), list)
    ]


def _targets(node: ast.AST) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
