"""Training data from files, folders and the hub's cache, read as a user gives them."""

import gzip
import json
import shutil

import pandas as pd
import pytest
from evaluate import hub_stand_in
from evaluate.local_sets import LFS_POINTER

from quant_engine.data import instructions
from quant_engine.data.instructions import Pair, pairs, pin
from quant_engine.spec import UserError

ROWS = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
]
EXPECTED = [
    Pair(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response: ",
        "3",
    ),
    Pair(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nGreet.\n\n### Response: ",
        "Hello",
    ),
]


@pytest.fixture(autouse=True)
def _home(lab):
    pass


def write(path, rows=ROWS):
    table = pd.DataFrame(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, kind):
    assert pairs(pin(str(write(tmp_path / f"rows.{kind}")))) == EXPECTED


def test_texts_have_no_prompt_and_empty_rows_are_left_out(tmp_path):
    path = write(tmp_path / "texts.jsonl", [{"text": "One."}, {"text": " "}, {"text": None}, {"text": "Two."}])
    assert pairs(pin(str(path))) == [Pair("", "One."), Pair("", "Two.")]


def test_an_instruction_column_without_input_will_do(tmp_path):
    path = write(tmp_path / "rows.json", [{"instruction": "Greet.", "output": "Hello", "id": 7}])
    assert pairs(pin(str(path))) == EXPECTED[1:]


def test_a_folder_as_the_hub_lays_it_out_gives_its_training_part(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    write(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    write(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", ROWS[:1])
    assert pairs(pin(str(tmp_path / "set"))) == EXPECTED


def test_a_hub_set_is_read_from_its_cache(tmp_path, monkeypatch):
    """The folder layout that huggingface_hub leaves, with no network to ask."""
    cache = tmp_path / "hub" / "datasets--lab--greetings"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    write(snapshot / "train.parquet")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pinned = f"hub:lab/greetings@{'a' * 40}"
    assert pin("hub:lab/greetings") == pin("hub:lab/greetings@main") == pin(pinned) == pinned
    assert pairs(pinned) == EXPECTED
    with pytest.raises(UserError, match="lab/others is not on this machine and the Hugging Face Hub can't be reached"):
        pin("hub:lab/others")
    with pytest.raises(UserError, match="greetings is not on this machine and the Hugging Face Hub can't be reached"):
        pairs(f"hub:lab/greetings@{'b' * 40}")


def test_a_hub_set_is_pinned_to_the_commit_that_its_branch_stands_at(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.parquet")
    for commit in ("a" * 40, "b" * 40):
        with hub_stand_in.hub({"lab/greetings": {"main": (commit, tmp_path / "files")}}) as (address, asked):
            hub_stand_in.ask(monkeypatch, address, tmp_path / "hub")
            pinned = pin("hub:lab/greetings")
            assert pinned == f"hub:lab/greetings@{commit}"
            assert pairs(pinned) == EXPECTED
            asked.clear()
            assert pin(pinned) == pinned
            assert not asked


def test_a_path_is_pinned_by_its_content(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.json")
    monkeypatch.chdir(tmp_path)
    pinned = pin("rows.json")
    assert pinned == pin(pinned)
    assert pinned.startswith(f"{path}@")
    write(path, ROWS[:1])
    assert pin(str(path)) != pinned
    with pytest.raises(UserError, match="have changed since this run was made"):
        pin(pinned)


def test_bad_data_are_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("Hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{nonsense")
    write(tmp_path / "other.json", [{"question": "1", "answer": "2"}])
    write(tmp_path / "blank.json", [{"text": ""}])
    shutil.copytree(tmp_path / "empty", tmp_path / "mixed")
    write(tmp_path / "mixed" / "a.json")
    write(tmp_path / "mixed" / "b.csv")
    for name, sentence in (
        ("missing.json", "There is no training data"),
        ("notes.txt", "is no training data: give a .json"),
        ("empty", "holds no .json"),
        ("mixed", "several kinds"),
    ):
        with pytest.raises(UserError, match=sentence):
            pin(str(tmp_path / name))
    for name, sentence in (
        ("broken.json", "broken.json, line 1 is no JSON"),
        ("other.json", "columns question, answer; they need instruction and output"),
        ("blank.json", "no row with an answer"),
    ):
        with pytest.raises(UserError, match=sentence):
            pairs(pin(str(tmp_path / name)))
    with pytest.raises(UserError, match="names no hub data set"):
        pin("hub:one two")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "have no row"),
        (b"[]", "have no row"),
        (b'\n{"instruction": "a", "output": ["b"]}', r"rows.json, line 2: output is a list, where text or a number"),
        (b'{"instruction": {"a": 1}, "output": "b"}', r"rows.json, line 1: instruction is an object, where text"),
        (b'[{"text": "a"}, {"text": true}]', "rows.json, row 2: text is true or false, where text or a number"),
        (b'{"text": "a"}\n7\n', "rows.json, line 2 is no JSON object: write one object in each line"),
        (b'{"text": "\\ud800"}', "rows.json, line 1: text holds half of a surrogate pair"),
        (b'{"text": "caf\xe9"}', "rows.json, line 1 is not UTF-8 text: save the file as UTF-8"),
        (LFS_POINTER, "rows.json is a Git LFS pointer, not the file itself"),
    ],
)
def test_rows_that_can_not_be_learned_are_one_sentence(tmp_path, content, sentence):
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        pairs(pin(str(tmp_path / "rows.json")))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "have no row"),
        (b"text\n", "have no row"),
        (b"instruction,output\na,b,c\n", "rows.csv, row 1 has more fields than there are columns"),
        (b'text\n"a\n', "rows.csv, row 1 is no CSV"),
        (b"instruction;output\na;b\n", "have the columns instruction;output; they need instruction and output"),
        (b"text\ncaf\xe9\n", "rows.csv, line 2 is not UTF-8 text"),
    ],
)
def test_tables_that_can_not_be_learned_are_one_sentence(tmp_path, content, sentence):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        pairs(pin(str(tmp_path / "rows.csv")))


@pytest.mark.parametrize("content", [b"", b"PAR1", LFS_POINTER])
def test_a_damaged_parquet_file_is_one_sentence(tmp_path, content):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"rows.parquet (can't be read|is a Git LFS pointer)"):
        pairs(pin(str(tmp_path / "rows.parquet")))


def test_a_number_is_its_text_as_it_is_written(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": 1, "output": 2.50}\n{"instruction": "x", "output": "2.50"}\n')
    (tmp_path / "rows.csv").write_text("instruction,output\n1,2.50\nx,2.50\n")
    for name in ("rows.jsonl", "rows.csv"):
        first, second = pairs(pin(str(tmp_path / name)))
        assert first.answer == second.answer == "2.50"
        assert "### Instruction:\n1\n" in first.prompt
    write(tmp_path / "rows.parquet", [{"instruction": "x", "output": 7}])
    assert pairs(pin(str(tmp_path / "rows.parquet")))[0].answer == "7"


def test_words_that_tables_use_for_no_value_are_text(tmp_path):
    (tmp_path / "rows.csv").write_text("text\nNA\nNone\nnan\n")
    assert [pair.answer for pair in pairs(pin(str(tmp_path / "rows.csv")))] == ["NA", "None", "nan"]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_rows_are_the_same_however_they_are_written(tmp_path, kind):
    rows = [{**ROWS[0], "output": "a\u2028b\x85c"}, ROWS[1]]
    content = write(tmp_path / f"rows.{kind}", rows).read_bytes()
    expected = pairs(pin(str(tmp_path / f"rows.{kind}")))
    assert expected[0].answer == "a\u2028b\x85c"
    marked = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")
    raw = json.dumps(rows, ensure_ascii=False).encode() if kind == "json" else content
    for name, written in ((f"a.{kind}", marked), (f"b.{kind}.gz", gzip.compress(marked, mtime=0)), (f"c.{kind}", raw)):
        (tmp_path / name).write_bytes(written)
        assert pairs(pin(str(tmp_path / name))) == expected


def test_the_data_that_ship_are_there():
    assert pin("builtin") == "builtin"
    assert pin("demo") == "demo"
    assert len(instructions.builtin_text()) > 10_000
