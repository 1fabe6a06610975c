"""What the page works with: results, the queue of runs, the answering process, votes, and who may start a run."""

from __future__ import annotations

import hmac
import logging
import os
import sys
from dataclasses import dataclass, field

from leaderboard import requests, room
from leaderboard.store import Store
from leaderboard.votes import Votes
from quant_engine import folders
from quant_engine.answers.client import AnswerService
from quant_engine.answers.zero_gpu import ZeroGpuAnswers
from quant_engine.children import start_child
from quant_engine.models.catalog import MODELS, available
from quant_engine.models.device import zero_gpu
from quant_engine.runs.queue import Queue
from quant_engine.runs.supervisor import Supervisor
from quant_engine.spec import UserError, clean_text

logger = logging.getLogger(__name__)


def answering() -> AnswerService:
    """What answers questions: a resident process, or with ZeroGPU a call that is given a GPU for each."""
    return ZeroGpuAnswers(room.settled) if zero_gpu() else AnswerService(settled=room.settled)


@dataclass
class Lab:
    """One per page process. `hosted` is a public page (a Hugging Face Space), where runs need the owner's token."""

    store: Store = field(default_factory=Store)
    queue: Queue = field(default_factory=lambda: Queue(folders.queue()))
    answers: AnswerService = field(default_factory=answering)
    votes: Votes = field(default_factory=lambda: Votes(folders.votes()))
    hosted: bool = field(default_factory=lambda: "SPACE_ID" in os.environ)
    owner_token: str = field(default_factory=lambda: os.environ.get("LOWBIT_OWNER_TOKEN", ""), repr=False)

    def start(self) -> None:
        """Takes up the queue: runs are started from here on, also those left by an earlier page.

        A hosted page also fetches the demo models, if they are not there; elsewhere `make serve` has done it.
        """
        Supervisor(self.queue).start()
        if self.hosted and not all(available(card) for card in MODELS.values() if card.origin == "demo"):
            start_child([sys.executable, "-m", "quant_engine", "get", "demo"], None, None, None)

    def warm_up(self) -> None:
        """Has the model loaded that the page offers first, if it is on this machine: the first question need not wait.

        Returns at once.
        """
        card = requests.picture_models()[0]
        if not available(card):
            return
        try:
            self.answers.warm_up(card.id)
        except UserError as refusal:  # whoever asks is told
            logger.warning("%s", refusal)

    def check_may_start(self, token: str) -> None:
        """Raises UserError unless this visitor may start and stop runs."""
        if not self.hosted:
            return
        if not self.owner_token:
            raise UserError("Runs can't be started on this page: its owner has set no LOWBIT_OWNER_TOKEN.")
        if not hmac.compare_digest(clean_text(token).encode(), self.owner_token.encode()):
            raise UserError("Starting runs here needs the owner's token: type it, or run Low-Bit Lab on your machine.")
