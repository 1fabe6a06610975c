"""What is imported is declared in requirements.txt, and what is declared there is needed."""

import ast
import re
import sys

from quant_engine import folders

PACKAGES = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
NOT_IMPORTED = {
    "authlib": "Gradio signs visitors of a Space in with it",
    "itsdangerous": "Gradio signs visitors of a Space in with it",
    "plotly": "the page serves the script that it carries",
    "protobuf": "transformers reads sentencepiece models with it",
    "sentencepiece": "transformers reads tokenizers without a JSON form with it",
}
NOT_DECLARED = {"triton": "torch brings it where it works", "ray": "the extra `distributed`, for --executor ray"}


def imports(path):
    """The top-level names of what a file imports, inside functions and through `deferred` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "deferred":
            yield node.args[0].value.split(".")[0]


def test_every_import_is_declared_and_every_declaration_is_needed():
    declared = re.findall(r"^([\w.-]+)==", (folders.PROJECT / "requirements.txt").read_text(), re.MULTILINE)
    paths = [path for room in ("quant_engine", "leaderboard") for path in (folders.PROJECT / room).rglob("*.py")]
    names = {name for path in [*paths, folders.PROJECT / "app.py"] for name in imports(path)}
    own = {"quant_engine", "leaderboard", *sys.stdlib_module_names}
    needed = {PACKAGES.get(name, name) for name in names - own - NOT_DECLARED.keys()}
    assert needed - set(declared) == set()
    assert set(declared) - needed == NOT_IMPORTED.keys()
