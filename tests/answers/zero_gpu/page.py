"""What a page on ZeroGPU does with questions to a model folder, as JSON: `page.py FOLDER`."""

import json
import sys

import gradio as gr

from leaderboard.lab import answering
from quant_engine.answers.messages import AskRequest
from quant_engine.models.device import answering_device, default_device
from quant_engine.spec import QuantSetting

FP16, RTN, WRONG = (
    QuantSetting(),
    QuantSetting(method="rtn", w_bits=4, group_size=32),
    QuantSetting(method="magic", w_bits=4),
)


def main() -> None:
    """Ask in several ways."""
    assert "torch" not in sys.modules
    service = answering()
    import spaces
    import torch

    from quant_engine.answers import worker

    load = worker.load_weights

    def load_with_gpu(*arguments):
        torch.cuda.synchronize()
        assert default_device() == "cpu"  # for there is no file of a driver
        return load(*arguments)

    worker.load_weights = load_with_gpu

    def asked(question="What?", sides=(FP16,), **more):
        return AskRequest(model=sys.argv[1], question=question, sides=sides, max_new_tokens=3, **more)

    answers = [event.model_dump(mode="json") for event in service.ask(asked(sides=(FP16, RTN, WRONG)))]
    parts = {"devices": [default_device(), answering_device()], "answers": answers}
    request = asked("What then?")
    events = []
    for event in service.ask(request):
        events.append(event.message or event.kind)
        if event.message == "Reading":
            service.cancel(request.request_id)
    parts["stopped"] = events
    spaces.refusal = gr.Error("No GPU was available", title="ZeroGPU client error")
    parts["refused"] = [event.message for event in service.ask(asked("And?"))]
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        parts["outside"] = str(error)
    print(json.dumps(parts | {"seconds": spaces.calls}))


if __name__ == "__main__":
    main()
