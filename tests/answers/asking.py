"""Questions to the stand-in for the answering process, and what comes of them."""

import itertools
import sys
import time
from pathlib import Path

from quant_engine.answers.messages import AskRequest
from quant_engine.spec import QuantSetting

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))
FP16 = QuantSetting()
RTN = QuantSetting(method="rtn", w_bits=4, group_size=32)
GPTQ, AWQ = (QuantSetting(method=method, w_bits=4) for method in ("gptq", "awq"))
SLOW = QuantSetting(method="slow", w_bits=4)
OTHER = QuantSetting(method="other", w_bits=4)
REFUSED = QuantSetting(method="refused", w_bits=4)

NUMBERS = itertools.count()


def request(model="text", sides=(FP16,), **more):
    """A question that nobody has asked yet."""
    return AskRequest(model=model, question=more.pop("question", f"Why {next(NUMBERS)}?"), sides=sides, **more)


def last(events):
    """The last event of each side."""
    ends = {}
    for event in events:
        ends[event.side] = event
    return ends


def until(events, kind):
    for event in events:
        if event.kind == kind and (event.text or kind == "status"):
            return event
    raise AssertionError(f"no {kind} came")


def until_message(events, words):
    for event in events:
        if words in event.message:
            return
    raise AssertionError(f"nothing said {words!r}")


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(folder, method):
    """Whether the process that quantizes by this method is gone."""
    (file,) = folder.glob(f"{method}.*")
    return gone(int(file.suffix[1:]))


def gone(pid):
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
