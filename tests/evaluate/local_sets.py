"""Small sets as they lie in a LOWBIT_DATA folder: short JSON-lines files, and the hub's own parquet files."""

import gzip
import io
import json

import datasets
from PIL import Image

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
PIQA = [
    {"goal": f"Open jar {k}", "sol1": "turn the lid" + " slowly" * k, "sol2": "throw it away", "label": k % 2}
    for k in range(7)
]
ARC = [
    {
        "id": f"q{k}",
        "question": f"What is number {k}?",
        "choices": {"text": ["one", "two", "three"], "label": labels},
        "answerKey": key,
    }
    for k, (labels, key) in enumerate([(["A", "B", "C"], "B"), (["1", "2", "3"], "3"), (["A", "B", "C"], "1")])
]
HELLASWAG = [
    {
        "activity_label": "Cooking",
        "ctx_a": "[header] How to cook [title] Boil water.",
        "ctx_b": "she then",
        "endings": ["adds  salt.", "[step] runs away.", "sleeps.", "adds rice."],
        "label": "3",
    }
]
WINOGRANDE = [
    {"sentence": "Ann thanked Mia because _ had helped.", "option1": "Ann", "option2": "Mia", "answer": "2"},
    {"sentence": "_ lost, and Tom won.", "option1": "Bob", "option2": "Tom", "answer": "1"},
]


def jsonl(path, rows, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


def picture(color="red", size=(40, 30), mode="RGB"):
    """A picture as the hub's parquet files hold it."""
    made = io.BytesIO()
    Image.new(mode, size, color).save(made, "PNG")
    return {"bytes": made.getvalue(), "path": f"{color}.png"}


def mmlu(subjects=("abstract_algebra", "anatomy"), questions=6):
    """Test and dev rows."""

    def row(subject, k, what):
        choices = [f"{what} {subject} {k} {n}" for n in range(4)]
        return {"question": f"Is {what} {k} so?", "subject": subject, "choices": choices, "answer": k % 4}

    test = [row(subject, k, "this") for subject in subjects for k in range(questions)]
    return test, [row(subject, k, "that") for subject in subjects for k in range(5)]
