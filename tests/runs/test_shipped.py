"""The runs that come with the project are whole, and asking for them today would be the same question."""

import pytest

from quant_engine import folders
from quant_engine.runs import folder
from quant_engine.runs.resolve import resolve

SHIPPED = sorted(path for path in (folders.ASSETS / "runs").glob("*") if path.is_dir())


@pytest.mark.demo
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_run_can_be_made_again(path):
    run = folder.read(path)
    weights = run.spec.weights.model_copy(update={"revision": None})
    assert resolve(run.spec.model_copy(update={"weights": weights})).spec.run_id == path.name
    for task in run.spec.tasks:
        assert folder.read_items(path, task)
    if run.spec.weights.setting.method != "fp16":
        assert folder.read_layers(path)


def test_shipped_runs_name_no_folder_of_the_machine_they_were_made_on():
    for path in SHIPPED:
        for text in (path / "run.json", path / "log.txt"):
            words = text.read_text(encoding="utf-8")
            assert not any(place in words for place in ("/work", "/tmp", "/home", "/root")), text
