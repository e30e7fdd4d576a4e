"""Longest functions and largest files of each package; fails above the limits of this project.

    python tests/size_report.py

A function over 40 lines or a file over 400 is marked, and must argue for itself in review.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUNCTION_MARK, FUNCTION_LIMIT = 40, 80
FILE_MARK, FILE_LIMIT = 400, 600


@dataclass(frozen=True)
class Size:
    """A function or a file, and its lines."""

    lines: int
    name: str


def sources() -> dict[str, list[Path]]:
    """Python files by package; tests and benches are packages of their own."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "src" / "plait").rglob("*.py")):
        package = path.relative_to(ROOT / "src" / "plait").parts[0]
        found.setdefault(package.removesuffix(".py"), []).append(path)
    for folder in ("bench", "tests"):
        found[folder] = sorted((ROOT / folder).rglob("*.py"))
    return {package: paths for package, paths in found.items() if paths}


def functions(path: Path) -> Iterator[Size]:
    """Every function and method, decorators and docstring included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            yield Size(node.end_lineno - first + 1, f"{path.relative_to(ROOT)}:{node.name}")


def files(paths: list[Path]) -> list[Size]:
    """Lines of each file."""
    return [Size(len(path.read_text().splitlines()), str(path.relative_to(ROOT))) for path in paths]


def over(sizes: list[Size], mark: int, limit: int) -> list[str]:
    """A line for each size over the mark; those over the limit say FAIL."""
    return [
        f"  {'FAIL' if s.lines > limit else 'long'} {s.lines:4d}  {s.name}" for s in sizes if s.lines > mark
    ]


def main() -> int:
    notes: list[str] = []
    print(f"{'package':12} {'files':>5} {'lines':>6}  largest file, longest function")
    for package, paths in sources().items():
        sizes, calls = files(paths), [size for path in paths for size in functions(path)]
        largest = max(sizes, key=lambda size: size.lines)
        longest = max(calls, key=lambda size: size.lines, default=Size(0, "none"))
        total = sum(size.lines for size in sizes)
        print(f"{package:12} {len(paths):5d} {total:6d}  {largest.lines:4d} {largest.name}")
        print(f"{'':26} {longest.lines:4d} {longest.name}")
        notes += over(calls, FUNCTION_MARK, FUNCTION_LIMIT) + over(sizes, FILE_MARK, FILE_LIMIT)
    print(f"\nfunctions over {FUNCTION_MARK} lines (limit {FUNCTION_LIMIT}), files over {FILE_MARK}:")
    print("\n".join(notes) or "  none")
    return 1 if any(note.startswith("  FAIL") for note in notes) else 0


if __name__ == "__main__":
    sys.exit(main())
