"""Packed and batched log-probabilities are those of each text by itself."""

import random

import pytest
import torch
from evaluate import tiny

from quant_engine.evaluate import likelihood
from quant_engine.evaluate.likelihood import Text, continuation


def alone(loaded, text):
    """One text by itself, the plain way."""
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([list(text.ids)])).logits[0].double().log_softmax(-1)
    return [logits[place, token].item() for place, token in text.targets]


def groups_of(loaded, seed=0, count=12):
    rng = random.Random(seed)
    words = range(4, loaded.vocabulary)
    groups = []
    for _ in range(count):
        context = rng.choices(words, k=rng.randint(1, 40))
        groups.append(
            [continuation(context, rng.choices(words, k=rng.randint(1, 15)), 500) for _ in range(rng.randint(1, 5))]
        )
    return groups


def collect(loaded, groups):
    values = {}
    for batch in likelihood.log_probabilities(loaded, groups):
        values |= batch
    return [values[number] for number in range(len(groups))]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("make", [tiny.llama, tiny.llava_next])
def test_packed_is_the_same_as_alone_whatever_the_batch(make, padded, monkeypatch):
    loaded = make()
    monkeypatch.setattr(likelihood, "_is_padded", lambda model: padded)
    groups = groups_of(loaded)
    expected = [alone(loaded, text) for group in groups for text in group]
    for tokens in (1, 200, 100_000):
        monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", tokens)
        found = [values for group in collect(loaded, groups) for values in group]
        for a, b in zip(found, expected, strict=True):
            assert a == pytest.approx(b, abs=1e-4)


def test_a_batch_on_a_cpu_has_no_padding(monkeypatch):
    loaded, read = tiny.llama(), []
    loaded.model.get_decoder().embed_tokens.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    groups = groups_of(loaded)
    rows = [likelihood._pack(texts) for texts in groups]
    lengths = {len(row.ids) for row in rows}
    assert len(lengths) > len(rows) / 2
    collect(loaded, groups)
    assert sum(read) == sum(len(row.ids) for row in rows)
    assert len(read) < len(rows)


def test_a_decoder_of_another_type_gets_padded_batches():
    loaded = tiny.llama()
    loaded.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert likelihood._is_padded(loaded.model)


def test_the_head_in_slices_is_the_same(monkeypatch):
    loaded = tiny.llama()
    groups = groups_of(loaded)
    whole = collect(loaded, groups)
    monkeypatch.setattr(likelihood, "HEAD_ROWS", 3)
    sliced = collect(loaded, groups)
    for group, other in zip(whole, sliced, strict=True):
        for a, b in zip(group, other, strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_equal_texts_texts_within_texts_and_one_token(monkeypatch):
    loaded = tiny.llama()
    groups = [
        [Text([5, 6, 7], [(2, 9), (2, 10), (0, 4)])] * 2,
        [Text([5, 6], [(1, 7)]), Text([5, 6, 7, 8], [(1, 7), (3, 9)])],
        [Text([11], [(0, 12)])],
    ]
    for group, values in zip(groups, collect(loaded, groups), strict=True):
        for text, one in zip(group, values, strict=True):
            assert one == pytest.approx(alone(loaded, text), abs=1e-4)


def test_a_long_context_is_cut_at_its_start():
    text = continuation([1, 2, 3, 4, 5], [6, 7], most_tokens=4)
    assert (list(text.ids), list(text.targets)) == ([3, 4, 5, 6], [(2, 6), (3, 7)])
    text = continuation([1], [2, 3, 4, 5, 6], most_tokens=3)
    assert (list(text.ids), list(text.targets)) == ([3, 4, 5], [(0, 4), (1, 5), (2, 6)])


def test_what_choices_share_is_computed_once():
    row = likelihood._pack([continuation([1, 2, 3], [4, 5], 99), continuation([1, 2, 3], [6, 7, 8], 99)])
    assert row.ids == [1, 2, 3, 4, 6, 7]
    assert row.positions == [0, 1, 2, 3, 3, 4]
    assert row.targets == [[(2, 4), (3, 5)], [(2, 6), (4, 7), (5, 8)]]
