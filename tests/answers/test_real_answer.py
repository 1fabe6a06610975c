"""The real answering process on the demo language model: FP16 beside a quantized setting."""

import pytest

from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AskRequest
from quant_engine.spec import QuantSetting

pytestmark = pytest.mark.demo


def test_both_settings_answer_and_the_quantized_one_holds_less_memory(lab):
    service = AnswerService()
    rtn = QuantSetting(method="rtn", w_bits=4, group_size=64)
    asked = AskRequest(
        model="demo-llm",
        question="What is the capital of France?",
        sides=(QuantSetting(), rtn),
        max_new_tokens=12,
    )
    events = list(service.ask(asked))
    service.close()

    ends = {event.side: event for event in events if event.kind in ("done", "error")}
    assert [ends[side].kind for side in (0, 1)] == ["done", "done"], ends
    assert "Paris" in ends[0].text
    assert ends[1].text
    assert ends[1].stats.weight_bytes < 0.6 * ends[0].stats.weight_bytes
    assert 4 < ends[1].stats.stored_bits < 5
    assert any("uantizing block" in event.message for event in events if event.side == 1)
