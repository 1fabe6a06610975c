"""The page's example pictures, from the test split: `python -m quant_engine.data.drawn.examples` draws them."""

from __future__ import annotations

from quant_engine import disk, folders
from quant_engine.data.drawn.pictures import picture

LARGEST = 60_000  # bytes of a PNG
EXAMPLES = (  # family, kind of question; each takes the next picture of its family that is small enough as a PNG
    ("chart", "extreme"),
    ("form", "field"),
    ("scene", "color"),
    ("chart", "value by color"),
    ("form", "total"),
    ("diagram", "after"),
)


def main() -> None:
    """Write the pictures and examples.json (image, question, answer) into assets/demo/examples."""
    folder = folders.ASSETS / "demo" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    entries, number = [], 0
    for family, kind in EXAMPLES:
        path = folder / f"{family}-{len(entries) + 1}.png"
        while True:
            number += 1
            example = picture(family, "test", number)
            question = next((q for q in example.questions if q.kind == kind), None)
            if question is None:
                continue
            example.drawing.image.save(path, optimize=True)
            if path.stat().st_size < LARGEST:
                break
        entries.append({"image": path.name, "question": question.text, "answer": question.sentence or question.answer})
    disk.write_json(folder / "examples.json", entries)


if __name__ == "__main__":
    main()
