"""Files of at most 400 lines and functions of at most 60.

Why: the serving engines we learnt from each grew one file or one function that knows every feature, and from then on
nobody could change a part without reading the whole. The limit makes the cut come early, while it is cheap.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("control_plane", "data_plane", "kernels", "migrations", "tests")
FILE_LINES = 400
FUNCTION_LINES = 60


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def long_functions(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"line {node.lineno}: {node.name} has {lines} lines, the most is {FUNCTION_LINES}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_sizes(folder: str) -> None:
    faults: list[str] = []
    for path in (path for path in sources() if path.relative_to(ROOT).parts[0] == folder):
        text = path.read_text()
        name = path.relative_to(ROOT)
        if (count := len(text.splitlines())) > FILE_LINES:
            faults.append(f"{name} has {count} lines, the most is {FILE_LINES}: cut it by noun")
        faults += [f"{name}, {fault}" for fault in long_functions(ast.parse(text))]
    assert not faults, "\n".join(faults)


def test_the_rule_sees_a_long_function() -> None:
    body = "\n".join(f"    x = {number}" for number in range(FUNCTION_LINES))
    assert len(long_functions(ast.parse(f"def f():\n{body}\n"))) == 1
    assert long_functions(ast.parse("def f():\n    return 1\n")) == []
