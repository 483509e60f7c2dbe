"""Every public function says what it takes and gives, and every module what it is.

Why: pyright in strict mode checks that types agree, not that a reader is told anything; and a module that cannot say
in a sentence what it is, and what it knows nothing about, is two modules.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("control_plane", "data_plane", "kernels")


def untyped(tree: ast.Module) -> list[str]:
    """Public functions, and public methods of classes, that lack an annotation of an argument or of the result."""
    found: list[str] = []
    scopes: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                found.append(f"line {node.lineno}: {node.name} lacks {', '.join(bare) or 'its result type'}")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_is_typed_and_modules_say_what_they_are(folder: str) -> None:
    found: list[str] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        name = path.relative_to(ROOT)
        if tree.body and ast.get_docstring(tree) is None:
            found.append(f"{name} has no docstring")
        found += [f"{name}, {fault}" for fault in untyped(tree)]
    assert not found, "\n".join(found)


def test_the_rule_sees_what_it_forbids() -> None:
    assert (
        len(untyped(ast.parse("def f(x): ...\ndef g(x: int): ...\nclass A:\n    def h(self, *, y) -> int: ..."))) == 3
    )
    assert untyped(ast.parse("def f(x: int) -> int: ...\ndef _g(x): ...")) == []
