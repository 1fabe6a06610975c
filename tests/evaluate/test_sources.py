"""Where benchmark items come from: a local folder, a stand-in of the hub, the hub's cache, or nowhere."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import pytest
from evaluate import local_sets
from evaluate.hub_stand_in import hub
from PIL import Image

from quant_engine import folders
from quant_engine.data import sources
from quant_engine.data.sources import Source, load
from quant_engine.evaluate import TASKS
from quant_engine.evaluate.vqa import by_picture
from quant_engine.spec import UserError

COMMIT = "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"
SOURCE = Source("some/set", "data/test-*.parquet", "set_test.jsonl", revision=COMMIT)

SCRIPT = """
import json, sys
from quant_engine.data.sources import Source, load, stored
from quant_engine.spec import UserError
rows = []
for arguments in json.loads(sys.argv[1]):
    try:
        revision = arguments.pop("stored", None)
        made = stored(Source(**arguments), "The set", revision) if revision else load(Source(**arguments), "The set")
        rows.append([made.revision, len(made), made[0]["goal"], made.picture(0).size])
    except UserError as refusal:
        rows.append(str(refusal))
print(json.dumps(rows))
"""


def elsewhere(home, address, *asked, **variables):
    """What `load` gives in a process of its own, for which `address` is the hub."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)],
        cwd=folders.PROJECT,
        env=keep | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "2", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_hub_is_asked_for_the_pinned_files_alone_and_its_cache_serves_again(tmp_path):
    files = tmp_path / "files"
    local_sets.parquet(files / "data/test-00000-of-00002.parquet", [{"goal": "a", "image": local_sets.picture()}])
    local_sets.parquet(files / "data/test-00001-of-00002.parquet", [{"goal": "b", "image": local_sets.picture()}])
    local_sets.parquet(files / "data/train-00000-of-00001.parquet", [{"goal": "no", "image": local_sets.picture()}])
    (files / "script.py").write_text("raise SystemExit('code of a data set was run')")
    pinned = {"repo": "some/set", "files": SOURCE.files, "short": SOURCE.short, "revision": COMMIT}
    branch = pinned | {"revision": "main"}
    unknown = pinned | {"repo": "some/other"}
    home = tmp_path / "hf"
    with hub({"some/set": {"main": (COMMIT, files)}}) as (address, asked):
        found = elsewhere(home, address, pinned, branch, unknown)
    expected = [f"some/set@{COMMIT}", 2, "a", [40, 30]]
    assert found[:2] == [expected, expected]
    assert found[2].startswith(
        "The repository some/other is gated or unknown to the Hugging Face Hub: accept its terms"
    )
    assert found[2].endswith("or put set_test.jsonl into a folder and set LOWBIT_DATA to that folder.")
    resolved = {line.split("/resolve/")[1] for line in asked if "/resolve/" in line}
    assert resolved == {f"{COMMIT}/data/test-0000{k}-of-00002.parquet" for k in range(2)}
    # The server is gone; what was fetched is still there, and another revision is not.
    away = "http://127.0.0.1:9"
    stored = pinned | {"stored": f"some/set@{COMMIT}"}
    again, read, refusal = elsewhere(home, away, pinned, stored, pinned | {"revision": "0" * 40})
    assert again == read == expected
    assert "is not on this machine and the Hugging Face Hub can't be reached (some/set, " in refusal
    assert "connect to the network, or put set_test.jsonl into a folder and set LOWBIT_DATA to that folder." in refusal
    assert "\n" not in refusal


@pytest.fixture
def data(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("LOWBIT_DATA", str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sources._load.cache_clear()
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_a_short_file_in_the_local_folder_comes_first(data, compressed):
    local_sets.jsonl(data / "set_test.jsonl", [{"goal": "x"}, {"goal": "y"}], compressed)
    local_sets.parquet(data / "some/set/data/test-0.parquet", [{"goal": "other"}])
    rows = load(SOURCE, "The set")
    assert [row["goal"] for row in rows] == ["x", "y"]
    assert rows.texts("goal") == ["x", "y"]
    assert rows.revision.startswith("set_test.jsonl")
    assert "sha256:" in rows.revision


def test_the_hubs_own_files_in_the_local_folder_come_next(data):
    local_sets.parquet(data / "some/set/data/test-0.parquet", [{"goal": "a"}])
    assert load(SOURCE, "The set")[0] == {"goal": "a"}


def test_other_content_is_another_revision(data):
    revisions = set()
    for goal in "ab":
        local_sets.jsonl(data / "set_test.jsonl", [{"goal": goal}])
        sources._load.cache_clear()
        revisions.add(load(SOURCE, "The set").revision)
    assert len(revisions) == 2


def test_pictures_lie_in_the_rows_or_beside_them(data):
    stored = local_sets.picture("blue", (8, 6), mode="RGB")
    (data / "set").mkdir()
    (data / "set/one.png").write_bytes(stored["bytes"])
    local_sets.jsonl(data / "set/val.jsonl", [{"image": "one.png"}, {"image": "two.png"}])
    rows = load(Source("a/b", "x", "set/val.jsonl"), "The set")
    assert rows.picture(0).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(UserError, match=r"picture of item 1 \(two.png\) is missing or damaged"):
        rows.picture(1)
    local_sets.parquet(data / "some/set/data/test-0.parquet", [{"image": stored}])
    assert load(SOURCE, "The set").picture(0).size == (8, 6)


def test_a_picture_of_a_row_is_turned_as_the_hubs_library_turns_it_and_a_damaged_one_is_a_sentence(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    (data / "set").mkdir()
    Image.new("RGB", (8, 6)).save(data / "set/one.jpg", exif=exif)
    whole = (data / "set/one.jpg").read_bytes()
    rows = [{"image": "one.jpg"}]
    for number, content in enumerate((whole[: len(whole) // 2], whole[:20], b"", b"\x89PNG\r\n\x1a\n\0\0", b"words")):
        (data / f"set/{number}.jpg").write_bytes(content)
        rows.append({"image": f"{number}.jpg"})
    local_sets.jsonl(data / "set/val.jsonl", rows)
    opened = load(Source("a/b", "x", "set/val.jsonl"), "The set")
    assert opened.picture(0).size == (6, 8)
    assert datasets.Image().decode_example({"path": str(data / "set/one.jpg"), "bytes": None}).size == (6, 8)
    for index in range(1, len(rows)):
        with pytest.raises(UserError, match=f"picture of item {index} "):
            opened.picture(index)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "set_test.jsonl holds no rows: fetch it again"),
        ("{not json\n", "set_test.jsonl, line 1 is no JSON object .*: write one object in each line"),
        ('{"goal": 1}\n[]\n', "set_test.jsonl, line 2 is no JSON object"),
        ('{"goal": 1}\n\n"goal"\n', "set_test.jsonl, line 3 is no JSON object"),
        ('[{"goal": 1}, 7]', "set_test.jsonl, row 2 is no JSON object"),
        ('[{"goal": 1},', "set_test.jsonl begins as a list and is no JSON"),
        ("[" * 100_000, "set_test.jsonl begins as a list and is no JSON .nested too deeply"),
        ('{"goal": ' + "9" * 5000 + "}\n{", "set_test.jsonl, line 2 is no JSON object .Expecting"),
        (b"\x1f\x8bnothing", "set_test.jsonl can't be read .it is cut off or damaged"),
        (gzip.compress(b'{"goal": 1}\n' * 999, mtime=0)[:-9], "set_test.jsonl can't be read .it is cut off or damaged"),
        (b'{"goal": 1}\n{"goal": "\xff"}\n', "set_test.jsonl, line 2 is not UTF-8 text: save the file as UTF-8"),
        ('{"goal": 1}'.encode("utf-16"), "set_test.jsonl is UTF-16 text: save it as UTF-8"),
        (local_sets.LFS_POINTER, "set_test.jsonl is a Git LFS pointer, not the file itself: run git lfs pull"),
    ],
)
def test_a_damaged_file_is_one_sentence(data, content, sentence):
    (data / "set_test.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^The set: .*{sentence}"):
        load(SOURCE, "The set")


@pytest.mark.parametrize("content", [b"", b"PAR1nothing", b"<html>", local_sets.LFS_POINTER])
def test_a_damaged_parquet_file_is_one_sentence(data, content):
    (data / "some/set/data").mkdir(parents=True)
    (data / "some/set/data/test-0.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"^The set: .*test-0.parquet (can't be read|is a Git LFS pointer)"):
        load(SOURCE, "The set")


WRITTEN = '{"goal": "a\u2028b\x85c\u2029d"}\n{"goal": "second"}\n'


@pytest.mark.parametrize(
    "content",
    [
        WRITTEN.encode(),
        b"\xef\xbb\xbf" + WRITTEN.replace("\n", "\r\n").encode(),
        b"\n  " + WRITTEN.replace("\n", "\n\n").encode().rstrip(),
        f"[{WRITTEN.strip().replace(chr(10), ', ')}]".encode(),
        b"\xef\xbb\xbf" + json.dumps([json.loads(line) for line in WRITTEN.split("\n")[:2]], indent=1).encode(),
        gzip.compress(b"\xef\xbb\xbf" + WRITTEN.encode(), mtime=0),
    ],
)
def test_json_rows_are_read_however_they_are_written(data, content):
    (data / "set_test.jsonl").write_bytes(content)
    assert load(SOURCE, "The set").texts("goal") == ["a\u2028b\x85c\u2029d", "second"]


def test_a_folder_that_is_none_is_one_sentence(data, monkeypatch):
    monkeypatch.setenv("LOWBIT_DATA", str(data / "nowhere"))
    with pytest.raises(UserError, match=r"LOWBIT_DATA is .*nowhere, which is no folder"):
        load(SOURCE, "The set")


CHARTS = [
    {"question": "How many?", "answer": "10", "type": "human_test", "image": local_sets.picture()},
    {"question": "Which?", "answer": "Blue", "type": "augmented_test", "image": local_sets.picture()},
]
MMBENCH = [
    {
        "index": index, "question": "Which?", "hint": hint, "answer": answer, "A": "x", "B": "y", "C": "nan",
        "D": "nan", "category": "c", "image": local_sets.picture(),
    }
    for index, hint, answer in [(1_000_007, "nan", "B"), (7, "nan", "A"), (8, "Look.", "A"), (1_000_008, "Look.", "B"),
                                (2_000_009, "nan", "A")]
]  # fmt: skip
MME = [
    {"question_id": f"{c}/1.png", "question": f"Is it {what}? Please answer yes or no.", "answer": answer,
     "category": c, "image": local_sets.picture(mode="RGB")}
    for c in ("count", "code_reasoning") for what, answer in (("so", "Yes"), ("not", "No"))
]  # fmt: skip


def questions(data, name, rows, limit=None):
    task = TASKS[name]
    local_sets.parquet(data / task.source.repo / task.source.files.replace("*", "00000-of-00001"), rows)
    return task.questions(limit)


def test_ai2d_questions(data):
    row = {
        "question": "Which?",
        "options": ["a", "b", "c"],
        "answer": "2",
        "image": local_sets.picture(mode="L", color=9),
    }
    (question,) = questions(data, "ai2d", [row])
    assert question.gold == ["C"]
    assert question.options == ["a", "b", "c"]
    assert question.prompt.startswith("Which?\nA. a\nB. b\nC. c\nAnswer with")
    assert question.picture().mode == "RGB"


def test_chartqa_questions_of_both_kinds_and_of_a_local_file(data):
    made = questions(data, "chartqa", CHARTS)
    assert [(q.gold, q.category) for q in made] == [(["10"], "human"), (["Blue"], "augmented")]
    assert made[0].prompt == "How many?\nAnswer the question with a single word."
    (data / "chartqa/images").mkdir(parents=True)
    (data / "chartqa/images/1.png").write_bytes(local_sets.picture()["bytes"])
    local_sets.jsonl(data / "chartqa/val.jsonl", [{"image": "images/1.png", "question": "Who?", "label": "88.85"}])
    sources._load.cache_clear()
    (question,) = TASKS["chartqa"].questions(None)
    assert (question.gold, question.category, question.picture().size) == (["88.85"], None, (40, 30))


def test_docvqa_questions(data):
    row = {"questionId": "49153", "question": "What?", "answers": ["1 a", "1a"], "image": local_sets.picture()}
    (question,) = questions(data, "docvqa", [row])
    assert (question.id, question.gold) == ("49153", ["1 a", "1a"])
    assert question.prompt == "What?\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize("stored", ["in rows", "beside them"])
def test_questions_about_the_same_picture_are_asked_together_wherever_they_stand(data, stored):
    colors = ("red", "blue", "red", "green", "blue", "red")
    rows = [{"question": f"What {k}?", "answer": "1", "type": "human_test"} for k in range(len(colors))]
    if stored == "in rows":
        made = questions(
            data, "chartqa", [row | {"image": local_sets.picture(c)} for row, c in zip(rows, colors, strict=True)]
        )
    else:
        for color in colors:
            (data / f"chartqa/{color}.png").parent.mkdir(exist_ok=True)
            (data / f"chartqa/{color}.png").write_bytes(local_sets.picture(color)["bytes"])
        local_sets.jsonl(
            data / "chartqa/val.jsonl",
            [
                {"image": f"{c}.png", "question": row["question"], "label": "1"}
                for row, c in zip(rows, colors, strict=True)
            ],
        )
        made = TASKS["chartqa"].questions(None)
    asked = by_picture(made, [5] * len(made))
    assert [group.indices for group in asked] == [[0, 2, 5], [1, 4], [3]]
    assert [group.picture().getpixel((0, 0)) for group in asked] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
    assert list(asked[1].questions) == [made[1].prompt, made[4].prompt]


def test_mmbench_questions_come_with_their_rotations(data):
    made = questions(data, "mmbench_en", MMBENCH)
    assert [(q.id, q.group) for q in made] == [("7", "7"), ("1000007", "7"), ("8", "8"), ("1000008", "8")]
    assert made[0].options == ["x", "y"]
    ending = "Which? There are several options:\nA. x\nB. y\n\nAnswer with the option's letter from the given choices"
    ending += " directly."
    assert made[0].prompt == ending
    assert made[2].prompt == f"Look. {ending}"
    assert [q.id for q in TASKS["mmbench_en"].questions(1)] == ["7", "1000007"]


def test_mme_questions_come_in_pairs(data):
    made = questions(data, "mme", MME)
    assert [(q.group, q.category, q.gold) for q in made[:2]] == [
        ("count/1.png", "count", ["Yes"]),
        ("count/1.png", "count", ["No"]),
    ]
    assert made[0].prompt == "Is it so?\nAnswer the question using a single word or phrase."
    assert len(TASKS["mme"].questions(1)) == 2
    assert len(TASKS["mme"].questions(3)) == 4
