"""Services whose answers come from the stand-in, which is forked from a process that has loaded its libraries."""

import forked
import pytest
from answers.asking import STAND_IN

from quant_engine.answers import client
from quant_engine.answers.client import AnswerService


@pytest.fixture(autouse=True, scope="module")
def _stand_ins_are_forked():
    """The stand-in loads no libraries anew each time. Every other command is started as ever."""
    start = client.start_child

    def forked_child(command, *pipes, **more):
        return forked.Python(command[1:]) if command[: len(STAND_IN)] == STAND_IN else start(command, *pipes, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "start_child", forked_child)
        yield


@pytest.fixture(scope="module")
def shared():
    service = AnswerService(STAND_IN)
    service.warm_up()
    yield service
    service.close()


@pytest.fixture
def service():
    service = AnswerService(STAND_IN)
    yield service
    service.close()
