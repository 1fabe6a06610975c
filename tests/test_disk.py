"""Files and folders are whole under their names, whatever happens while they are written."""

import contextlib
from pathlib import Path

import pytest

from quant_engine import disk


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    disk.write_json(tmp_path / "new" / "a.json", {"a": 1})
    disk.write_text(tmp_path / "new" / "a.json", "two")
    assert (tmp_path / "new" / "a.json").read_text() == "two"
    assert names(tmp_path) == ["a.json", "new"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    disk.write_text(tmp_path / "a", "old")

    def fail():
        with disk.replacing(tmp_path / "a") as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        with disk.replacing_folder(tmp_path / "run") as aside:
            (aside / content).write_text(content)
            assert not (tmp_path / "run" / content).exists()
    assert names(tmp_path) == ["new", "run"]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    with disk.replacing_folder(tmp_path / "run") as aside:
        (aside / "old").write_text("old")

    def fail():
        with disk.replacing_folder(tmp_path / "run") as aside:
            (aside / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["old", "run"]


def test_what_a_killed_writer_left_is_removed_and_nothing_of_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "rmtree", lambda *_, **__: None)  # as if killed before
    for name in ("demo", "demo", "demo-llm"):
        with disk.replacing_folder(tmp_path / name):
            pass
        with contextlib.suppress(RuntimeError), disk.replacing_folder(tmp_path / name):
            raise RuntimeError
    monkeypatch.undo()
    assert len(names(tmp_path)) == 6
    disk.remove_left_overs(tmp_path / "demo")
    (left_over,) = [name for name in names(tmp_path) if name not in ("demo", "demo-llm")]
    assert left_over.startswith(".demo-llm-")


def test_a_folder_that_can_not_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    with disk.replacing_folder(tmp_path / "run") as aside:
        (aside / "old").write_text("old")
    rename = Path.rename

    def refuse(path, target):
        if target == tmp_path / "run" and not path.name.endswith("-old"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)

    def replace():
        with disk.replacing_folder(tmp_path / "run") as aside:
            (aside / "new").write_text("new")

    with pytest.raises(OSError, match="no"):
        replace()
    assert names(tmp_path) == ["old", "run"]
