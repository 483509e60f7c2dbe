"""No call that turns data into code: pickle, marshal, torch.load, eval, exec, yaml.load, a shell; no open Jinja.

Why: nearly every remote execution in serving stacks of the last years was one of these on bytes that came from
outside: pickled messages between processes, pickled weights, chat templates rendered by an ordinary Jinja. What is
never imported cannot be reached by a route that somebody adds later.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("control_plane", "data_plane", "kernels", "migrations")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
BARE_CALLS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "builtins.eval",
    "builtins.exec", "torch.package.PackageImporter", "pandas.read_pickle",
}  # fmt: skip
JINJA = {"Environment", "SandboxedEnvironment", "NativeEnvironment"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def in_import(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES]
    module = node.module or ""
    found = [f"imports {module}"] if module.split(".")[0] in MODULES else []
    for alias in node.names:
        if f"{module}.{alias.name}" in CALLS:
            found.append(f"imports {module}.{alias.name}")
        if module.split(".")[0] == "jinja2" and alias.name in JINJA:
            found.append(f"imports jinja2's {alias.name}: only ImmutableSandboxedEnvironment may render")
    return found


def in_call(node: ast.Call) -> list[str]:
    name = dotted(node.func)
    found: list[str] = []
    if name in BARE_CALLS or name in CALLS:
        found.append(f"calls {name}")
    if name.rpartition(".")[2] in JINJA:
        found.append(f"calls {name}: only ImmutableSandboxedEnvironment may render")
    for keyword in node.keywords:
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            found.append(f"calls {name} with shell=")
        if keyword.arg == "allow_pickle" and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        ):
            found.append(f"calls {name} with allow_pickle=")
    return found


def faults(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        said: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            said = in_import(node)
        elif isinstance(node, ast.Call):
            said = in_call(node)
        found += [f"line {node.lineno} {what}" for what in said if isinstance(node, ast.stmt | ast.expr)]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_turns_data_into_code(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)} {fault}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for fault in faults(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "from torch import load",
        "eval('1')", "exec('1')", "yaml.load(x)", "os.system('ls')", "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)", "np.load(f, allow_pickle=True)", "import jinja2\njinja2.Environment()",
        "from jinja2 import Environment", "from jinja2.sandbox import SandboxedEnvironment", "import marshal",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(code: str) -> None:
    assert faults(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "from jinja2.sandbox import ImmutableSandboxedEnvironment\nImmutableSandboxedEnvironment()",
        "import re\nre.compile('x')", "model.eval()", "subprocess.run(['ls'], shell=False)", "json.load(f)",
    ],
)  # fmt: skip
def test_the_rule_lets_pass_what_is_harmless(code: str) -> None:
    assert faults(ast.parse(code)) == []
