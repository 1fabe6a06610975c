"""Tasks in one text with commas between: a comma in the path of a text file is part of the path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_engine.evaluate import split_tasks


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


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    paths=st.lists(st.text(st.sampled_from("ab,@:'\"\\ \n-é"), min_size=1, max_size=12), max_size=4),
    others=st.lists(st.sampled_from(["piqa", "mmlu", "wikitext2", "arc_easy:bos", "divergence:demo-mme"]), max_size=3),
)
def test_the_tasks_of_a_resolved_run_are_read_back(paths, others):
    names = [f"perplexity:/{path}@0123456789ab" for path in paths] + others
    assert list(split_tasks(",".join(names))) == names
