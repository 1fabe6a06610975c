"""Tasks in one text with commas between: a comma in the path of a text file is part of the path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.evaluate import parse_task, split_tasks
from quant_engine.spec import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("perplexity", ["perplexity"]),
        (" piqa , perplexity,", ["piqa", "perplexity"]),
        ("piqa,,mmlu", ["piqa", "mmlu"]),
        ("piqa,piqa", ["piqa", "piqa"]),
        ("", []),
        (" , ,", []),
        ("perplexity:/a,b.txt,piqa", ["perplexity:/a,b.txt", "piqa"]),
        ("piqa,perplexity:/a,b.txt", ["piqa", "perplexity:/a,b.txt"]),
        ("perplexity:/a, b.txt, piqa:bos", ["perplexity:/a, b.txt", "piqa:bos"]),
        ("perplexity:/a,b.txt,divergence:/c,d.txt", ["perplexity:/a,b.txt", "divergence:/c,d.txt"]),
        ("perplexity:a.txt,divergence:demo-ai2d,wikitext2", ["perplexity:a.txt", "divergence:demo-ai2d", "wikitext2"]),
        ("perplexity:/piqa,mine.txt", ["perplexity:/piqa,mine.txt"]),
        ("perplexity:/a,piqa.txt", ["perplexity:/a,piqa.txt"]),
        ("divergence:demo-ai2d,sudoku", ["divergence:demo-ai2d", "sudoku"]),
        ("piqa,sudoku", ["piqa", "sudoku"]),
        ("/a,b.txt", ["/a", "b.txt"]),
    ],
)
def test_where_one_task_ends(text, names):
    assert list(split_tasks(text)) == names


def test_a_path_that_is_too_long_for_a_task_is_one_sentence(tmp_path):
    deep = tmp_path / "/".join(["a" * 90] * 4)
    deep.mkdir(parents=True)
    (deep / "text.txt").write_text("Some words.")
    with pytest.raises(UserError, match=r"longer than 370 characters: move it into a folder further up\.$"):
        parse_task(f"perplexity:{deep / 'text.txt'}")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    paths=st.lists(st.text(st.sampled_from("ab,@:'\"\\ \n-é"), min_size=1, max_size=12), max_size=4),
    others=st.lists(st.sampled_from(["piqa", "mmlu", "wikitext2", "arc_easy:bos", "divergence:demo-mme"]), max_size=3),
)
def test_the_tasks_of_a_resolved_run_are_read_back(paths, others):
    names = [f"perplexity:/{path}@0123456789ab" for path in paths] + others
    assert list(split_tasks(",".join(names))) == names
