"""PIQA, ARC, HellaSwag, WinoGrande and MMLU: prompts as the reference's, scores from a model that is known exactly."""

import math

import pytest
import torch
from evaluate import local_sets, tiny

from quant_engine.data import sources
from quant_engine.evaluate import TASKS, Watch, choices, likelihood, mmlu, parse_result_name, parse_task
from quant_engine.evaluate.choices import _output
from quant_engine.evaluate.hellaswag import clean_text
from quant_engine.evaluate.task import FinishedItems
from quant_engine.progress import Stopped
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError, WeightSpec


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A LOWBIT_DATA folder with all five sets, and MMLU."""
    folder = tmp_path / "data"
    monkeypatch.setenv("LOWBIT_DATA", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    local_sets.jsonl(folder / "piqa_val.jsonl", local_sets.PIQA, compressed=True)
    local_sets.jsonl(folder / "hellaswag_val.jsonl", local_sets.HELLASWAG)
    local_sets.parquet(folder / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", local_sets.ARC)
    local_sets.parquet(
        folder / "allenai/winogrande/winogrande_xl/validation-00000-of-00001.parquet", local_sets.WINOGRANDE
    )
    test, dev = local_sets.mmlu()
    local_sets.parquet(folder / "cais/mmlu/all/test-00000-of-00001.parquet", test)
    local_sets.jsonl(folder / "mmlu_dev.jsonl", dev)
    return folder


def measure(name, loaded=None, limit=None, watch=None):
    return parse_task(name).measure(
        loaded or tiny.llama(), RunSpec(weights=WeightSpec(model="tiny"), tasks=(name,), limit=limit), watch or Watch()
    )


def items(name):
    task = parse_task(name)
    rows = sources.load(task.source, task.title)
    return [task.item(row, index) for index, row in enumerate(rows)]


def test_piqa_prompt(data):
    item = items("piqa")[2]
    assert item.prompt == "Question: Open jar 2\nAnswer:"
    assert item.continuations == [" turn the lid slowly slowly", " throw it away"]
    assert item.gold == 0


def test_arc_keys_may_be_numbers_or_letters(data):
    made = items("arc_easy")
    assert [item.gold for item in made] == [1, 2, 0]
    assert made[0].prompt == "Question: What is number 0?\nAnswer:"
    assert made[0].continuations == [" one", " two", " three"]


def test_arc_rows_with_a_ready_prompt():
    row = {"id": "M1", "query": "Question: Why?\nAnswer:", "choices": ["a", "b"], "gold": 1}
    item = parse_task("arc_challenge").item(row, 0)
    assert (item.id, item.prompt, item.continuations, item.gold) == ("M1", row["query"], [" a", " b"], 1)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (" a b ", "a b"),
        ("How to fry [title] Heat", "How to fry. Heat"),
        ("[header] one [step] two", " one two"),
        ("a   b", "a  b"),  # one replacement, as in the reference
        ("x[one]y[two]", "xy"),
    ],
)
def test_hellaswag_cleaning(text, clean):
    assert clean_text(text) == clean


def test_hellaswag_prompt(data):
    (item,) = items("hellaswag")
    assert item.prompt == "Cooking: How to cook. Boil water. She then"
    assert item.choices == ["adds salt.", " runs away.", "sleeps.", "adds rice."]
    assert item.continuations[1] == "  runs away."
    assert item.gold == 3


def test_winogrande_scores_one_continuation_under_two_contexts(data):
    first, second = items("winogrande")
    assert first.contexts == ["Ann thanked Mia because Ann", "Ann thanked Mia because Mia"]
    assert first.continuations == [" had helped.", " had helped."]
    assert first.gold == 1
    assert second.contexts == ["Bob", "Tom"]
    assert [part.name for part in measure("winogrande").parts] == []


def test_acc_and_acc_norm_differ_where_lengths_do():
    texts = ["ab", "abcdefghij"]
    item = choices.ChoiceItem("1", "p", ["p", "p"], [f" {t}" for t in texts], texts, gold=1)
    outcome = parse_task("piqa").conclude([_output(item, [-4.0, -5.0])], "r")
    assert outcome.value == 0  # -4 > -5
    (norm,) = outcome.parts
    assert (norm.name, norm.metric, norm.value) == ("piqa_norm", "acc_norm", 100)  # -4 / 2 < -5 / 10


def test_a_tie_goes_to_the_first_choice():
    item = choices.ChoiceItem("1", "p", ["p"] * 3, [" x", " y", " z"], ["x", "y", "z"], gold=0)
    assert _output(item, [-1.0, -1.0, -2.0]).prediction == "x"
    assert _output(item, [-3.0, -1.0, -1.0]).prediction == "y"


def test_values_that_are_no_numbers_are_a_collapsed_model():
    item = choices.ChoiceItem("1", "p", ["p"] * 2, [" x", " y"], ["x", "y"], gold=0)
    outcome = parse_task("piqa").conclude([_output(item, [math.nan, -1.0])], "r")
    assert (outcome.value, outcome.status) == (None, "collapsed")


def test_log_probabilities_are_those_of_each_choice_by_itself(data):
    loaded = tiny.llama()
    outcome = measure("piqa", loaded)
    encode = loaded.tokenizer
    for row, output in zip(local_sets.PIQA, outcome.outputs, strict=True):
        context = encode(f"Question: {row['goal']}\nAnswer:", add_special_tokens=False)["input_ids"]
        for solution, found in zip((row["sol1"], row["sol2"]), output.log_probabilities, strict=True):
            following = encode(f" {solution}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([context + following])).logits[0].log_softmax(-1)
            expected = sum(logits[len(context) - 1 + k, token].item() for k, token in enumerate(following))
            assert found == pytest.approx(expected, abs=1e-3)
        best = output.log_probabilities.index(max(output.log_probabilities))
        assert output.score == (best == row["label"])


@pytest.mark.parametrize("name", ["piqa", "winogrande", "mmlu"])
def test_another_batch_size_gives_the_same(data, name, monkeypatch):
    loaded = tiny.llama()
    runs = []
    for tokens in (1, 300, 50_000):
        monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", tokens)
        monkeypatch.setattr(mmlu, "PACK_TOKENS", max(tokens, 300))
        runs.append(measure(name, loaded))
    for run in runs[1:]:
        assert run.value == runs[0].value
        for one, other in zip(run.outputs, runs[0].outputs, strict=True):
            assert one.item == other.item
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_the_same_twice_is_the_same(data):
    assert measure("arc_easy").outputs == measure("arc_easy").outputs


def test_bos_is_another_task_with_other_numbers(data):
    plain, spoken = measure("piqa"), measure("piqa:bos")
    assert parse_task("piqa:bos").name == "piqa:bos"
    assert [part.name for part in spoken.parts] == ["piqa:bos_norm"]
    assert parse_result_name("piqa:bos_norm")[1] == "norm"
    assert plain.outputs[0].log_probabilities != pytest.approx(spoken.outputs[0].log_probabilities, abs=1e-3)
    with pytest.raises(UserError, match="There is no task"):
        parse_task("mmlu:bos")


def test_every_number_has_its_task():
    for task in TASKS.values():
        for suffix in ("", *task.parts):
            assert parse_result_name(task.result_name(suffix)) == (task, suffix)
    assert parse_result_name("perplexity:/no/such/file.txt@0123456789ab")[0].title == "file.txt"
    assert parse_result_name("nothing") is None


class InMemory(FinishedItems):
    """Stores items as a run does, in memory."""

    def __init__(self):
        self.items = {}

    def open(self, revision):
        return dict(self.items)

    def add(self, outputs):
        self.items |= {output.item: output for output in outputs}


@pytest.mark.parametrize("name", ["piqa", "mmlu"])
def test_an_interrupted_evaluation_goes_on_at_the_next_item(data, name, monkeypatch):
    monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", 1)
    monkeypatch.setattr(mmlu, "PACK_TOKENS", 1)
    finished = InMemory()
    seen = []
    with pytest.raises(Stopped):
        measure(name, watch=Watch(lambda *at: seen.append(at), lambda: len(seen) == 3, finished))
    assert len(finished.items) == 3
    before = dict(finished.items)
    seen.clear()
    outcome = measure(name, watch=Watch(lambda *at: seen.append(at), finished_items=finished))
    assert seen[0][0] == 4
    assert all(before[output.item] is output for output in outcome.outputs if output.item in before)
    assert [output.item for output in outcome.outputs] == [output.item for output in measure(name).outputs]


def test_mmlu_prompt_is_the_references(data):
    loaded = tiny.llama()
    loaded.model.config.max_position_embeddings = 4096  # one token a byte: the prompt is long
    output = measure("mmlu", loaded).outputs[1]
    start = (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\nIs that 0 so?\nA. that"
    )
    assert output.prompt.startswith(start)
    assert "D. that abstract_algebra 1 3\nAnswer: B\n\nIs that 2 so?" in output.prompt
    assert output.prompt.endswith(
        "Is this 1 so?\n"
        + "\n".join(f"{letter}. this abstract_algebra 1 {n}" for n, letter in enumerate("ABCD"))
        + "\nAnswer:"
    )
    assert output.prompt.count("Answer: ") == 5


def test_mmlu_categories_are_means_over_questions(data):
    outputs = [
        ItemOutput(
            item=str(k),
            prompt="",
            gold=["A"],
            prediction="",
            score=float(right),
            category=subject,
            log_probabilities=[-1.0, -2.0, -3.0, -4.0, -9.0, -2.0, -3.0, -4.0],
        )
        for k, (subject, right) in enumerate(
            [("anatomy", 1), ("virology", 0), ("virology", 0), ("astronomy", 1), ("philosophy", 1)]
        )
    ]
    outcome = parse_task("mmlu").conclude(outputs, "r")
    assert outcome.value == pytest.approx(60)
    numbers = {part.name: (part.value, part.items) for part in outcome.parts}
    assert numbers == {
        "mmlu_humanities": (100, 1),
        "mmlu_stem": (100, 1),
        "mmlu_other": (pytest.approx(100 / 3), 3),
        "mmlu_unspaced": (0, 5),
    }


def test_mmlu_has_57_subjects_in_four_categories():
    sizes = {name: list(mmlu.CATEGORY.values()).count(name) for name in set(mmlu.CATEGORY.values())}
    assert sizes == {"stem": 18, "humanities": 13, "social_sciences": 12, "other": 14}


def test_mmlu_drops_examples_until_the_prompt_fits(data, monkeypatch):
    monkeypatch.setattr(choices, "MOST_CONTEXT", 400)
    for output in measure("mmlu").outputs:
        assert len(tiny.llama().tokenizer(output.prompt)["input_ids"]) <= 400
        assert output.prompt.count("Answer: ") < 5
        assert "Is that 0 so?" in output.prompt


def test_mmlu_with_a_limit_has_all_subjects(data):
    outcome = measure("mmlu", limit=4)
    assert [output.item for output in outcome.outputs] == ["0", "3", "6", "9"]
    assert {output.category for output in outcome.outputs} == {"abstract_algebra", "anatomy"}


def test_mmlu_without_examples_is_one_sentence(data):
    _, dev = local_sets.mmlu()
    local_sets.jsonl(data / "mmlu_dev.jsonl", dev[:5])
    sources._load.cache_clear()
    with pytest.raises(UserError, match="no 5 examples of the subject 'anatomy'"):
        measure("mmlu")


def test_letters_with_and_without_space():
    words = {" A": [9, 1], "A": [2]}
    tokens = mmlu.letter_tokens(lambda text, add_special_tokens: {"input_ids": words.get(text, [7])})
    assert tokens == [1, 7, 7, 7, 2, 7, 7, 7]


def test_a_tokenizer_without_bos_is_one_sentence(data):
    loaded = tiny.llama()
    loaded.tokenizer.bos_token = None
    with pytest.raises(UserError, match="no beginning-of-text token"):
        measure("piqa:bos", loaded)


def test_an_empty_context_starts_after_the_text_before():
    loaded = tiny.llama()
    item = choices.ChoiceItem("1", "", ["", ""], ["ab", "c"], ["ab", "c"], gold=0)
    (texts,) = choices.tokenize([item], loaded, bos=False)
    assert texts[0].ids[0] == loaded.tokenizer.bos_token_id
    assert len(texts[0].targets) == 2
    assert texts[1].targets[0][0] == 0
