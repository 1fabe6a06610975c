"""What benchmark files of others say wrongly: read rightly, or one sentence with set, row and field before any work."""

import copy
import gzip
import json

import datasets
import pytest
from evaluate import local_sets
from evaluate.test_sources import CHARTS, MMBENCH, MME
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant_engine.data import sources
from quant_engine.evaluate import TASKS
from quant_engine.evaluate.choices import MultipleChoice
from quant_engine.evaluate.mmlu import Mmlu
from quant_engine.spec import UserError

ARC_READY = [
    {"id": f"q{k}", "query": f"Question: {k}?\nAnswer:", "choices": ["one", "two", "three"], "gold": k}
    for k in range(3)
]
ARC_OWN = [
    {
        "id": row["id"],
        "question": {
            "stem": row["question"],
            "choices": [
                {"text": text, "label": label}
                for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
            ],
        },
        "answerKey": row["answerKey"],
    }
    for row in local_sets.ARC
]
CHARTQA = [
    {"image": "charts/1.png", "question": "Who?", "label": "88.85"},
    {"image": "charts/1.png", "question": "How many?", "answer": "7", "type": "human_test"},
]
AI2D = [
    {"question": f"Which {k}?", "options": ["a", "b", "c"], "answer": str(k), "image": local_sets.picture()}
    for k in range(3)
]
DOCVQA = [
    {"questionId": f"4{k}", "question": f"What {k}?", "answers": ["1 a", f"{k}"], "image": local_sets.picture()}
    for k in range(3)
]
MMLU, MMLU_DEV = local_sets.mmlu(("anatomy",), 3)
FILES = {
    "piqa": ("piqa", "piqa_val.jsonl", local_sets.PIQA),
    "arc": ("arc_easy", "arc_easy_test.jsonl", local_sets.ARC),
    "arc, ready": ("arc_challenge", "arc_challenge_test.jsonl", ARC_READY),
    "arc, own": ("arc_easy", "arc_easy_test.jsonl", ARC_OWN),
    "hellaswag": ("hellaswag", "hellaswag_val.jsonl", local_sets.HELLASWAG * 2),
    "winogrande": ("winogrande", "winogrande_xl_val.jsonl", local_sets.WINOGRANDE),
    "mmlu": ("mmlu", "mmlu_test.jsonl", MMLU),
    "chartqa": ("chartqa", "chartqa/val.jsonl", CHARTQA),
}
"""Of each form of file: the task, the file's name, and rows that are right."""
TABLES = {"ai2d": AI2D, "docvqa": DOCVQA, "mmbench_en": MMBENCH, "mme": MME, "chartqa": CHARTS}
MAY_BE_MISSING = {"type", "hint", "A", "B", "C", "D", "category"}
"""Fields that are no fault by themselves where they have no value."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LOWBIT_DATA folder, which each test fills anew."""
    root = tmp_path_factory.mktemp("data")
    (root / "chartqa/charts").mkdir(parents=True)
    (root / "chartqa/charts/1.png").write_bytes(local_sets.picture()["bytes"])
    local_sets.jsonl(root / "mmlu_dev.jsonl", MMLU_DEV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBIT_DATA", str(root))
        patch.setenv("HF_DATASETS_CACHE", str(root / "cache"))
        yield root


def items(name):
    """What a task reads, behind the check that comes before a model is loaded; None where that is a sentence."""
    sources._load.cache_clear()
    task = TASKS[name]
    try:
        task.prepare()
    except UserError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert task.title in refusal
        assert "\n" not in refusal
        return None
    if isinstance(task, MultipleChoice):
        return task.items(sources.load(task.source, task.title))
    if isinstance(task, Mmlu):
        return task._read()[0]
    return [(q.id, q.prompt, q.gold, q.options, q.group, q.category, q.picture().size) for q in task.questions(None)]


def written(rows, form=()):
    """The content of a file of rows: an object in each line, or as `form` says."""
    ascii_only = "raw" not in form
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    content = f"[{', '.join(texts)}]" if "list" in form else "\n".join(texts) + "\n"
    if "indented" in form:
        content = json.dumps(rows, indent=2, ensure_ascii=ascii_only)
    if "blank lines" in form:
        content = "\n" + content.replace("\n", "\n \n")
    if "CRLF" in form:
        content = content.replace("\n", "\r\n")
    data = content.encode("utf-8-sig" if "mark" in form else "utf-8", errors="backslashreplace")
    return gzip.compress(data, mtime=0) if "gzip" in form else data


FORMS = st.sets(st.sampled_from(["list", "indented", "raw", "CRLF", "mark", "gzip", "blank lines"]))
ABSENT = object()
UNUSABLE = [ABSENT, None, True, [], {}, ["x"], {"a": None}, float("nan"), "\ud800x"]
"""What can stand for no text and no number."""
USABLE = st.one_of(
    st.sampled_from(["", " ", "-1", "1.0", -1, 0, 1, 2.50, 7, 1e300, 10**30, "_", "\u2028\x85", "\x00", "a" * 100_000]),
    st.text(max_size=8),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)


def fields(value, path=()):
    """The paths to all fields of a row, those inside of others included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in inner for found in fields(item, (*path, key))]


def spoiled(rows, index, path, value):
    rows = [copy.deepcopy(row) for row in rows]
    target = rows[index]
    for key in path[:-1]:
        target = target[key]
    if value is ABSENT:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return rows


def quick(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@quick(400)
@given(kind=st.sampled_from(sorted(FILES)), form=FORMS, data=st.data())
def test_a_spoiled_file_is_read_rightly_or_refused(folder, kind, form, data):
    name, file, rows = FILES[kind]
    index = data.draw(st.integers(0, len(rows) - 1))
    path = data.draw(st.sampled_from(fields(rows[index])))
    value = data.draw(st.one_of(st.sampled_from(UNUSABLE), USABLE))
    (folder / file).write_bytes(written(rows))
    right = items(name)
    (folder / file).write_bytes(written(spoiled(rows, index, path, value), form))
    found = items(name)
    unusable = any(value is other for other in UNUSABLE)
    if unusable and path[0] not in MAY_BE_MISSING and not (value is ABSENT and isinstance(path[-1], int)):
        assert found is None
    elif not unusable:
        (folder / file).write_bytes(written(spoiled(rows, index, path, str(value))))
        assert found == items(name), "a number is its text, and how a file is written makes no difference"
    if found is not None:
        assert [item for k, item in enumerate(found) if k != index] == [
            item for k, item in enumerate(right) if k != index
        ]


@quick(100)
@given(kind=st.sampled_from(sorted(FILES)), form=FORMS, data=st.data())
def test_rows_in_another_order_or_twice_are_read_rightly_or_refused(folder, kind, form, data):
    name, file, rows = FILES[kind]
    (folder / file).write_bytes(written(rows))
    right = items(name)
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=2 * len(rows)))
    (folder / file).write_bytes(written([rows[index] for index in indices], form))
    found = items(name)
    if not indices or ("arc" in kind and len(set(indices)) < len(indices)):
        assert found is None
    else:
        assert [scored(item) for item in found] == [scored(right[index]) for index in indices]


def scored(item):
    """An item without its number in the file."""
    return item[1:] if isinstance(item, tuple) else {**vars(item), "id": None}


def write_table(folder, name, rows):
    file = folder / TASKS[name].source.repo / TASKS[name].source.files.replace("*", "0")
    (folder / "chartqa/val.jsonl").unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(file)


@quick(60)
@given(name=st.sampled_from(sorted(TABLES)), data=st.data())
def test_a_spoiled_table_is_read_rightly_or_refused(folder, name, data):
    rows = TABLES[name]
    write_table(folder, name, rows)
    right = items(name)
    field = data.draw(st.sampled_from(sorted(rows[0])))
    one = data.draw(st.booleans())
    value = data.draw(st.sampled_from([None, "", "x"] if one else [ABSENT, None, True, [], [["x"]], -1, 7, 0.5, b"x"]))
    if one and field in ("image", "options", "answers", "index"):
        value = None
    changed = copy.deepcopy(rows)
    for row in changed[:1] if one else changed:
        row[field] = value
        if value is ABSENT:
            del row[field]
    write_table(folder, name, changed)
    if field == "image" and value == b"x":  # nobody decodes a picture before it is shown
        with pytest.raises(UserError, match="missing or damaged"):
            items(name)
        return
    found = items(name)
    if value is None or value is ABSENT or isinstance(value, bool | list | bytes):
        assert field in MAY_BE_MISSING or found is None
    if one and found is not None and len(found) == len(right):
        assert sum(item != other for item, other in zip(found, right, strict=True)) <= 1


PIQA, WINOGRANDE, HELLASWAG = local_sets.PIQA[0], local_sets.WINOGRANDE[0], local_sets.HELLASWAG[0]
UNANSWERED = "so there is nothing to score; give a split whose answers are published"


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("piqa", {"label": -1}, f"label is -1, {UNANSWERED}"),
        ("piqa", {"label": ABSENT}, f"label is missing, {UNANSWERED}"),
        ("piqa", {"label": 2}, "label is 2, which is none of its 2 choices (from 0 on)"),
        ("piqa", {"label": "first"}, "label is 'first', where a whole number belongs"),
        ("piqa", {"label": 0.5}, "label is '0.5', where a whole number belongs"),
        ("piqa", {"goal": ["x"]}, "goal is a list, where text or a number belongs"),
        ("piqa", {"sol2": " "}, "sol2 is empty"),
        ("hellaswag", {"label": ""}, f"label is empty, {UNANSWERED}"),
        ("hellaswag", {"endings": ["a", None]}, "endings.1 is missing"),
        ("hellaswag", {"endings": "abcd"}, "endings should be a valid list, not 'abcd'"),
        ("hellaswag", {"endings": ["a"]}, "endings should have at least 2 items"),
        ("hellaswag", {"endings": ["a", "b", "[x]", "d"]}, "endings holds one of marks in brackets alone"),
        ("winogrande", {"answer": ""}, f"answer is empty, {UNANSWERED}"),
        ("winogrande", {"answer": 0}, "answer is 0, which is none of its 2 choices (from 1 on)"),
        ("winogrande", {"sentence": "No blank."}, "sentence has no blank (_) with words behind it"),
        ("winogrande", {"sentence": "Ends in _"}, "sentence has no blank (_) with words behind it"),
        ("arc", {"answerKey": "D"}, "answerKey is 'D', and the choices' labels are 'A, B, C'"),
        ("arc", {"answerKey": ""}, f"answerKey is empty, {UNANSWERED}"),
        ("arc", {"choices": ["a", "b"]}, "choices should be a valid dictionary"),
        ("arc", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "answerKey is 'B', and the choices' labels are 'A'"),
        ("arc, ready", {"gold": 3}, "gold is 3, which is none of its 3 choices (from 0 on)"),
        ("arc, own", {"question": {"stem": "What?"}}, "question is an object, where text or a number belongs"),
        ("mmlu", {"choices": ["a", "b", "c"]}, "choices should have at least 4 items"),
        ("mmlu", {"answer": 4}, "answer is 4, which is none of its 4 choices (from 0 on)"),
        ("mmlu", {"subject": "cooking"}, "subject is 'cooking', which is none of the 57 of MMLU"),
        ("chartqa", {"label": None}, f"label is missing, {UNANSWERED}"),
        ("chartqa", {"image": None}, "image is missing"),
        ("chartqa", {"image": "charts/2.png"}, "image names 'charts/2.png', which is no picture here"),
        ("chartqa", {"image": "val.jsonl"}, "image names 'val.jsonl', which is no picture here"),
        ("chartqa", {"type": "robot"}, "type is 'robot', and neither human_test nor augmented_test"),
    ],
)
def test_what_is_wrong_with_a_row_is_one_sentence(folder, kind, changes, sentence):
    name, file, rows = FILES[kind]
    ((field, value),) = changes.items()
    (folder / file).write_bytes(written(spoiled(rows, 0, (field,), value)))
    sources._load.cache_clear()
    with pytest.raises(UserError) as refusal:
        TASKS[name].prepare()
    where = f"line 1 of {file.rpartition('/')[2]}"
    assert str(refusal.value).startswith(f"{TASKS[name].title}, {where}: {sentence}")


@pytest.mark.parametrize(
    ("name", "index", "changes", "sentence"),
    [
        ("ai2d", 1, {"answer": "3"}, "row 2 of test-0.parquet: answer is 3, which is none of its 3 choices"),
        ("ai2d", 0, {"answer": ""}, f"row 1 of test-0.parquet: answer is empty, {UNANSWERED}"),
        ("ai2d", 2, {"image": None}, "row 3 of test-0.parquet: image is missing"),
        ("docvqa", 0, {"answers": []}, f"row 1 of validation-0.parquet: answers is missing, {UNANSWERED}"),
        ("docvqa", 0, {"answers": [""]}, "row 1 of validation-0.parquet: answers are all empty"),
        ("docvqa", 1, {"questionId": "40"}, "row 2 of validation-0.parquet: questionId is '40', as in row 1 of"),
        ("mmbench_en", 0, {"answer": "C"}, "row 1 of dev-0.parquet: answer is 'C', which is none of its 2 options"),
        ("mmbench_en", 0, {"answer": "AB"}, "row 1 of dev-0.parquet: answer is 'AB', which is none of its 2 options"),
        ("mmbench_en", 0, {"D": "z"}, "row 1 of dev-0.parquet: C is missing, and an option behind it is there"),
        ("mmbench_en", 3, {"index": 8}, "row 4 of dev-0.parquet: index is '8', as in row 3 of dev-0.parquet"),
        ("mme", 0, {"answer": "Perhaps"}, "row 1 of test-0.parquet: answer is 'Perhaps', and neither Yes nor No"),
        ("mme", 0, {"category": "taste"}, "row 1 of test-0.parquet: category is 'taste', which is none of the"),
        ("chartqa", 0, {"answer": " "}, f"row 1 of test-0.parquet: answer is empty, {UNANSWERED}"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(folder, name, index, changes, sentence):
    rows = copy.deepcopy(TABLES[name])
    rows[index] |= changes
    write_table(folder, name, rows)
    sources._load.cache_clear()
    with pytest.raises(UserError) as refusal:
        TASKS[name].prepare()
    assert str(refusal.value).startswith(f"{TASKS[name].title}, {sentence}")


def test_pairs_and_rotations_that_are_not_whole_are_said_before_any_work(folder):
    write_table(folder, "mme", MME[:3])
    assert items("mme") is None
    with pytest.raises(UserError, match=r"two questions about each picture, and code_reasoning/1\.png has 1"):
        TASKS["mme"].prepare()
    write_table(folder, "mmbench_en", MMBENCH[:1])
    assert items("mmbench_en") is None
    with pytest.raises(UserError, match="MMBench-EN: no index is below 1000000"):
        TASKS["mmbench_en"].prepare()


def test_an_id_that_comes_twice_is_one_sentence(folder):
    (folder / "arc_easy_test.jsonl").write_bytes(written([*local_sets.ARC, local_sets.ARC[1]]))
    sources._load.cache_clear()
    with pytest.raises(
        UserError, match=r"ARC-Easy, line 4 of .*: id is 'q1', as in line 2 of .*: remove one of the two"
    ):
        TASKS["arc_easy"].prepare()


def test_arc_as_its_authors_give_it_is_arc(folder):
    (folder / "arc_easy_test.jsonl").write_bytes(written(local_sets.ARC))
    expected = items("arc_easy")
    (folder / "arc_easy_test.jsonl").write_bytes(written(ARC_OWN))
    assert items("arc_easy") == expected


def test_too_few_solved_questions_of_mmlu_are_said_before_any_work(folder):
    (folder / "mmlu_test.jsonl").write_bytes(written(local_sets.mmlu(("anatomy", "virology"), 1)[0]))
    assert items("mmlu") is None
    with pytest.raises(UserError, match="MMLU has no 5 examples of the subject 'virology'"):
        TASKS["mmlu"].prepare()
