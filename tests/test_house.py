"""The plan of the code, held: who imports whom, which words are names, how long a function is, what is declared.

The rooms are read from the list in CONTRIBUTING.md, from the ground up.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from quant_engine import folders

PACKAGES = ("quant_engine", "leaderboard")
FILES = [folders.PROJECT / "app.py", *(file for name in PACKAGES for file in (folders.PROJECT / name).rglob("*.py"))]
LATE = {
    ("app.py", "leaderboard.lab"): "a port in use is said at once",
    ("app.py", "leaderboard.ui.page"): "gradio takes seconds to load",
    ("app.py", "leaderboard.ui.theme"): "gradio takes seconds to load",
    ("quant_engine/cli.py", "quant_engine.checkpoints"): "torch: --help and list answer at once",
    ("quant_engine/cli.py", "quant_engine.demo.fetch"): "pip and conversion are for `get` alone",
    ("quant_engine/cli.py", "quant_engine.finetune.merge"): "torch",
    ("quant_engine/cli.py", "quant_engine.formats.export"): "torch",
    ("quant_engine/cli.py", "quant_engine.models.decode"): "torch",
    ("quant_engine/cli.py", "quant_engine.data.open_picture"): "Pillow",
    ("quant_engine/cli.py", "quant_engine.runs.about"): "torch",
    ("quant_engine/cli.py", "quant_engine.runs.model_card"): "torch",
    ("quant_engine/cli.py", "quant_engine.runs.paired"): "numpy",
    ("quant_engine/cli.py", "quant_engine.runs.weights"): "torch",
    ("quant_engine/kernels/matmul.py", "quant_engine.kernels.gpu"): "Triton, which is there with a GPU only",
    ("quant_engine/runs/weights.py", "quant_engine.finetune.training"): "peft takes seconds to load",
}
"""Imports of the project's own modules inside functions: (file, module), and what they spare at the start."""
DIALECT = {"told", "said", "made", "kept", "one", "place", "places", "beside", "wired"}
"""Words that say nothing of what a value is or a function does."""
LONGEST_FUNCTION = 60


def relative(file: Path) -> str:
    return file.relative_to(folders.PROJECT).as_posix()


def rooms(guide: str) -> list[str]:
    """The places of the list under "Where things are", from the ground up."""
    section = guide.split("## Where things are\n")[1].split("\n## ")[0]
    listed = re.search(r"```text\n(.*?)```", section, re.DOTALL)[1]
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


ROOMS = rooms((folders.PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def room_of(file: str) -> str:
    """The listed place that a file belongs to: itself, or the innermost of its folders."""
    matching = [room for room in ROOMS if file == room or (room.endswith("/") and file.startswith(room))]
    assert matching, f"{file} has no room in CONTRIBUTING.md"
    return max(matching, key=len)


def file_of(module: str) -> str | None:
    """The file of a module of the project; None for anything else."""
    path = folders.PROJECT / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return relative(file)
    return None


def imports(source: str) -> list[tuple[str, bool]]:
    """The project's modules that a source imports, anywhere, by statement or `deferred`; and whether in a function."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in inner]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "deferred":
            names = [node.args[0].value]
        found.extend((name, inside) for name in dict.fromkeys(names) if name.split(".")[0] in PACKAGES)
        inside = inside or isinstance(node, ast.FunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def upward(file: str, source: str) -> list[str]:
    """What a file imports from rooms that are not above its own in the list."""
    own = ROOMS.index(room_of(file))
    return [name for name, _ in imports(source) if ROOMS.index(room_of(file_of(name))) > own]


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_every_import_points_downward(file):
    names = upward(relative(file), file.read_text(encoding="utf-8"))
    assert not names, f"{relative(file)} imports {', '.join(names)} of rooms further down the list"


def test_an_upward_import_is_noticed_wherever_it_stands():
    for source in (
        "from quant_engine.runs import folder",
        "def f():\n    import leaderboard.view",
        "class A:\n    def f(self):\n        from quant_engine.runs.folder import read",
        "if TYPE_CHECKING:\n    from quant_engine.answers import client",
        "x = deferred('quant_engine.runs.folder')",
    ):
        assert upward("quant_engine/weights/packing.py", source), source
    assert not upward("quant_engine/runs/folder.py", "from quant_engine.weights import packing")


def test_no_two_modules_import_each_other_in_a_circle():
    graph = {
        relative(file): {file_of(name) for name, _ in imports(file.read_text(encoding="utf-8"))} - {relative(file)}
        for file in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]), pytrace=False)


def test_imports_inside_functions_have_a_reason():
    late = {
        (relative(file), name) for file in FILES for name, inside in imports(file.read_text(encoding="utf-8")) if inside
    }
    assert late == LATE.keys()


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_names_are_words_that_say_something(file):
    dialect = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [getattr(node, field, None) for field in ("name", "id", "attr", "arg")]
        dialect |= {name for name in names if isinstance(name, str) and name.strip("_").lower() in DIALECT}
    assert not dialect


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_functions_are_short(file):
    functions = (n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef))
    long = {n.name: n.end_lineno - n.lineno + 1 for n in functions if n.end_lineno - n.lineno >= LONGEST_FUNCTION}
    assert not long
