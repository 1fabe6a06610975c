"""AI2D, MMBench and MME: scorers against tables of cases, the odd ones of lmms-eval included, and their aggregates."""

import math

import pytest
from evaluate import tiny
from evaluate.test_multiple_choice import InMemory

from quant_engine.evaluate import TASKS, Watch, measure_together, measured_together
from quant_engine.evaluate.ai2d import DemoAi2d, letter_match, letter_prompt
from quant_engine.evaluate.mmbench import DemoMmBench, answered_letter, inferred_letter, rule_based_letter
from quant_engine.evaluate.mme import DemoMme, PublishedMme, yes_or_no
from quant_engine.models import decode, forward
from quant_engine.models.batch import Answered
from quant_engine.results import ItemOutput
from quant_engine.spec import RunSpec, UserError, WeightSpec


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("A", True),
        ("A.", True),
        ("a", True),
        ("a.", True),
        ("  A. a fish", True),
        ("A. B", True),
        ("(A)", True),
        ("A)", True),
        ("A) a fish", False),
        ("a. a fish", False),
        ("The answer is A.", False),
        ("A fish", False),
        ("B", False),
        ("AA", False),
        ("", False),
        ("1", False),
    ],
)
def test_ai2d(prediction, right):
    assert letter_match(prediction, "A") is right


def test_a_letter_prompt_is_the_references():
    assert letter_prompt("Which eats algae?", ["fish", "bear"]) == (
        "Which eats algae?\nA. fish\nB. bear\nAnswer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        (" B ", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("(C).", "C"),
        (":D", "D"),
        ("D) a dog", "D"),
        ("E", "E"),
        ("A dog", "A"),  # three words at most: a letter
        ("A big brown dog", "D"),  # more: the article, and then the option's text
        ("B or A big one", None),
        ("A B", None),
        ("A. or B.", None),
        ("a cat", "B"),
        ("It is a CAT", "B"),
        ("a cat and a dog", None),
        ("b", None),
        ("AB", None),
        ("", None),
    ],
)
def test_mmbench_letter_from_words_and_options(answer, letter):
    assert inferred_letter(answer, ["bird", "cat", "cow", "dog"]) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A or B", "A"),  # it starts with one, and ends with the other
        ("Not this, but B", "B"),
        ("The answer is C, not the others", "C"),
        ("The answer is B because Apples", "A"),  # the last letter behind the phrase, whatever word it is in
        ("answer is A then B. the correct answer is A then", "A"),
        ("I think (B) rather than (C) here", "C"),  # the last of the most telling form
        ("either B: or C) here", "B"),
        ("option D maybe", "D"),
        ("either (A) or B", "B"),  # it ends with one
        ("(A) but no CAB", "A"),  # it ends with a word
        ("Dogs, or (B) maybe", "B"),  # it starts with a word
        ("not B though THE ANSWER IS unclear", "B"),  # no letter behind the phrase
        ("xByCz", "C"),
        ("'B'", "B"),
        ("bbb", None),
        ("", None),
        ("...", None),
    ],
)
def test_mmbench_letter_by_rules(answer, letter):
    assert rule_based_letter(answer, "ABCD") == letter


def test_mmbench_rules_come_after_words_and_texts():
    options = ["bird", "cat", "cow"]
    assert answered_letter("C", options) == "C"
    assert answered_letter("(D) or none", options) == "D"  # no option of it: wrong, as in the reference
    assert answered_letter("I choose B over A", options) == "A"
    assert answered_letter("nothing", options) is None


def mmbench(hits):
    """Outputs of questions with rotations: hits[question] is a list of right or wrong."""
    return [
        ItemOutput(item=f"{q}-{r}", prompt="", gold=["A"], prediction="", score=float(hit), group=q)
        for q, rotations in hits.items()
        for r, hit in enumerate(rotations)
    ]


def test_mmbench_counts_a_question_only_if_all_its_rotations_are_right():
    outcome = DemoMmBench().conclude(mmbench({"a": [1, 1, 1, 1], "b": [1, 1, 1, 0], "c": [0, 0, 0, 0]}), "r")
    assert outcome.value == pytest.approx(100 / 3)
    assert outcome.items == 3
    assert len(outcome.outputs) == 12


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        (" NO ", "no"),
        ("Y", "yes"),
        ("n", "no"),
        ("x", "other"),
        ("Yes, it is", "yes"),
        ("No, it is", "no"),
        ("not so", "no"),
        ("nope", "no"),
        ("I know", "other"),
        ("It is yes", "other"),
        ("a no", "no"),
        (".y.es", "yes"),
        ("", "other"),
        ("maybe", "other"),
    ],
)
def test_mme_answer(answer, said):
    assert yes_or_no(answer) == said


def mme(task, pairs):
    """Outputs of pictures: pairs are (category, picture, right of two)."""
    outputs = [
        ItemOutput(item=f"{c}-{p}-{k}", prompt="", gold=["Yes"], prediction="", score=float(k < n), group=p, category=c)
        for c, p, n in pairs
        for k in range(2)
    ]
    return task.conclude(outputs, "r")


@pytest.mark.parametrize(("right", "points"), [(2, 200), (1, 50), (0, 0)])
def test_mme_points_of_one_picture(right, points):
    assert mme(PublishedMme(), [("count", "p", right)]).value == points


def test_mme_sums_the_means_of_categories_in_two_halves():
    pairs = [
        ("count", "1", 2),
        ("count", "2", 1),
        ("OCR", "3", 2),
        ("code_reasoning", "4", 1),
        ("code_reasoning", "5", 0),
    ]
    outcome = mme(PublishedMme(), pairs)
    assert outcome.value == pytest.approx(125 + 200 + 25)
    numbers = {part.name: (part.value, part.items) for part in outcome.parts}
    assert numbers == {"mme_perception": (pytest.approx(325), 3), "mme_cognition": (pytest.approx(25), 2)}


def test_mme_error_is_that_of_a_sum_of_means():
    pairs = [("count", str(k), k % 3) for k in range(9)] + [("scene", str(k), 2 * (k % 2)) for k in range(4)]
    points = {0: 0, 1: 50, 2: 200}
    variance = 0.0
    for category in ("count", "scene"):
        values = [points[n] for c, _, n in pairs if c == category]
        mean = sum(values) / len(values)
        variance += sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)
    assert mme(PublishedMme(), pairs).standard_error == pytest.approx(math.sqrt(variance))


def test_mme_pictures_of_one_name_in_two_categories_are_two_pictures():
    assert mme(PublishedMme(), [("count", "1", 2), ("color", "1", 1)]).value == 250


def test_mme_without_pairs_is_one_sentence():
    output = ItemOutput(item="1", prompt="", gold=["Yes"], prediction="", score=1.0, group="p", category="count")
    with pytest.raises(UserError, match="needs two questions about each picture, and p has 1"):
        PublishedMme().conclude([output], "r")


def answer_with(monkeypatch, answer):
    """Puts answers in place of a model's."""

    def answers(loaded, asked, check_stop):
        for group in asked:
            for index, prompt, _ in group.each:
                yield Answered(index, [], answer(prompt), None)

    monkeypatch.setattr("quant_engine.models.batch.answers", answers)


@pytest.mark.parametrize("name", ["demo-ai2d", "demo-mmbench", "demo-mme"])
def test_a_model_that_answers_right_gets_all_points(name, monkeypatch):
    """The whole path on drawn pictures, with answers in place of a model's."""
    task = TASKS[name]
    right = {}
    for question in task.questions(6):
        right[question.prompt] = question.gold[0]
    answer_with(monkeypatch, right.get)
    outcome = task.measure(None, RunSpec(weights=WeightSpec(model="demo"), tasks=(name,), limit=6), Watch())
    assert all(output.score == 1 for output in outcome.outputs)
    if name == "demo-mme":
        assert len(outcome.outputs) == 6
        assert outcome.items == 3
        assert outcome.value == 200 * len({output.category for output in outcome.outputs})
    else:
        assert outcome.value == 100
        assert outcome.items == 6


def test_a_finished_question_is_not_asked_again(monkeypatch):
    answer_with(monkeypatch, lambda prompt: "Yes")
    task, spec, finished = (
        DemoMme(),
        RunSpec(weights=WeightSpec(model="demo"), tasks=("demo-mme",), limit=4),
        InMemory(),
    )
    first = task.questions(4)[0]
    finished.add([task.output(first, "an earlier answer")])
    counts = []
    outcome = task.measure(None, spec, Watch(lambda *at: counts.append(at), finished_items=finished))
    assert counts == [(2, 4), (3, 4), (4, 4)]
    assert [output.prediction for output in outcome.outputs] == ["an earlier answer", "Yes", "Yes", "Yes"]


def test_chartqa_has_a_number_for_each_kind_of_question():
    outputs = [
        ItemOutput(item=str(k), prompt="", gold=["1"], prediction="", score=score, category=category)
        for k, (score, category) in enumerate([(1.0, "human"), (0.0, "human"), (1.0, "augmented"), (1.0, "augmented")])
    ]
    outcome = TASKS["chartqa"].conclude(outputs, "r")
    assert outcome.value == 75
    assert {part.name: part.value for part in outcome.parts} == {"chartqa_human": 50, "chartqa_augmented": 100}


def test_demo_prompts_are_those_the_model_was_taught():
    from quant_engine.data.drawn.questions import LETTER, WORD_OR_PHRASE, choice_prompt

    for task, header in ((DemoAi2d(), False), (DemoMmBench(), True)):
        (question, *_) = task.questions(1)
        text = question.prompt.split("\n")[0]
        assert question.prompt == choice_prompt(text, question.options, header=header)
        assert question.prompt.endswith(LETTER)
    assert all(question.prompt.endswith(WORD_OR_PHRASE) for question in DemoMme().questions(2))


def test_a_picture_is_read_once_for_its_questions_and_the_answers_are_the_same(monkeypatch):
    loaded = tiny.llava_next()
    loaded.model.config.text_config.max_position_embeddings = 4096
    pictures, encode = [], forward.picture_features
    monkeypatch.setattr(forward, "picture_features", lambda *given: pictures.append(given) or encode(*given))
    task, spec = DemoMme(), RunSpec(weights=WeightSpec(model="demo"), tasks=("demo-mme",), limit=4)
    monkeypatch.setattr(DemoMme, "most_tokens", 4)
    shared = task.measure(loaded, spec, Watch())
    assert len(pictures) == 2
    for question, output in zip(task.questions(4), shared.outputs, strict=True):
        assert decode.answer_text(loaded, question.picture(), question.prompt, 4) == output.prediction


def test_tasks_of_the_demo_suite_read_a_picture_once_for_all_and_each_gets_its_own_answers(monkeypatch):
    loaded, limit = tiny.llava_next(), 4
    loaded.model.config.text_config.max_position_embeddings = 4096
    tasks = [TASKS[f"demo-{name}"] for name in ("docvqa", "mmbench", "mme")]
    for task in tasks:
        monkeypatch.setattr(type(task), "most_tokens", 3)
    spec = RunSpec(weights=WeightSpec(model="demo"), tasks=tuple(task.name for task in tasks), limit=limit)
    apart = [task.measure(loaded, spec, Watch()) for task in tasks]
    pictures, encode = [], forward.picture_features
    monkeypatch.setattr(forward, "picture_features", lambda *given: pictures.append(given) or encode(*given))
    counts = {task.name: [] for task in tasks}
    watches = [Watch(lambda *at, name=task.name: counts[name].append(at)) for task in tasks]
    outcomes = measure_together(tasks, loaded, spec, watches)
    assert outcomes == apart
    assert len(pictures) == 7  # four forms, and of each family one for MMBench, two of which MME has too
    for task, outcome in zip(tasks, outcomes, strict=True):
        total = len(outcome.outputs)
        assert counts[task.name] == [(done, total) for done in range(1, total + 1)]


def test_what_one_of_several_tasks_has_finished_is_not_asked_again(monkeypatch):
    answer_with(monkeypatch, lambda prompt: "Yes")
    tasks = [TASKS["demo-ai2d"], TASKS["demo-mme"]]
    spec = RunSpec(weights=WeightSpec(model="demo"), tasks=("demo-ai2d", "demo-mme"), limit=4)
    stores = [InMemory(), InMemory()]
    first = tasks[1].questions(4)[1]
    stores[1].add([tasks[1].output(first, "an earlier answer")])
    diagrams, pairs = measure_together(tasks, None, spec, [Watch(finished_items=store) for store in stores])
    assert [output.prediction for output in diagrams.outputs] == ["Yes"] * 4
    assert [output.prediction for output in pairs.outputs] == ["Yes", "an earlier answer", "Yes", "Yes"]


def test_tasks_of_the_demo_suite_are_measured_at_once_and_others_by_themselves():
    names = ("piqa", "demo-mme", "perplexity", "demo-docvqa", "mme")
    groups = measured_together([TASKS[name] for name in names])
    assert [[task.name for task in group] for group in groups] == [
        ["piqa"],
        ["demo-mme", "demo-docvqa"],
        ["perplexity"],
        ["mme"],
    ]
