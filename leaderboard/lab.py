"""What the page works with: results, also shared ones, the queue of runs, answers, votes, and who may start a run."""

from __future__ import annotations

import hmac
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from leaderboard import requests, room
from leaderboard.sharing import Sharing
from leaderboard.store import Store
from leaderboard.votes import Votes
from quant_engine import folders
from quant_engine.answers.client import AnswerService
from quant_engine.answers.zero_gpu import ZeroGpuAnswers
from quant_engine.children import start_child
from quant_engine.models.catalog import MODELS, available
from quant_engine.models.device import zero_gpu
from quant_engine.runs import executors, shared
from quant_engine.runs.queue import Queue
from quant_engine.runs.supervisor import Supervisor
from quant_engine.spec import UserError, clean_text

logger = logging.getLogger(__name__)

OWNER = "the owner"
"""Whose runs those are that were started with the owner's token: no user of the hub has a name with a blank."""


def answering() -> AnswerService:
    """What answers questions: a resident process, or with ZeroGPU a call that is given a GPU for each."""
    return ZeroGpuAnswers(room.settled) if zero_gpu() else AnswerService(settled=room.settled)


def _names(text: str) -> list[str]:
    return [name.strip().casefold() for name in text.split(",") if name.strip()]


@dataclass
class Lab:
    """One per page process.

    `hosted` is a public page (a Hugging Face Space), where only the owner and those whom it allows start and stop runs:
    the owner by its token, the `allowed` (LOWBIT_ALLOWED, names with commas between) by signing in; `signed_in` says
    who makes the present request.
    """

    store: Store = field(default_factory=Store)
    queue: Queue = field(default_factory=lambda: Queue(folders.queue()))
    answers: AnswerService = field(default_factory=answering)
    votes: Votes = field(default_factory=lambda: Votes(folders.votes()))
    hosted: bool = field(default_factory=lambda: "SPACE_ID" in os.environ)
    owner_token: str = field(default_factory=lambda: os.environ.get("LOWBIT_OWNER_TOKEN", ""), repr=False)
    allowed: frozenset[str] = field(default_factory=lambda: frozenset(_names(os.environ.get("LOWBIT_ALLOWED", ""))))
    signed_in: Callable[[], str] = lambda: ""
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        """Shares results where a data set is named for it."""
        repository = shared.repository()
        if self.sharing is None and repository:
            self.sharing = Sharing(repository, self.queue)

    def start(self) -> None:
        """Takes up the queue: runs are started from here on, also those left by an earlier page.

        A hosted page also fetches the demo models, if they are not there; elsewhere `make serve` has done it.
        """
        Supervisor(self.queue, at_once=executors.at_once()).start()
        if self.sharing:
            self.sharing.start()
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

    def check_may_start(self, token: str) -> str:
        """The name under which this visitor's runs are queued, empty on one's own machine. Raises UserError unless this
        visitor may start, pause, stop and delete runs. The same for the page, the API and MCP."""
        if not self.hosted:
            return ""
        user = self.signed_in()
        if user.casefold() in self.allowed:
            return user
        if self.owner_token and hmac.compare_digest(clean_text(token).encode(), self.owner_token.encode()):
            return OWNER
        if not self.owner_token and not self.allowed:
            raise UserError("Runs can't be started on this page: its owner has set no LOWBIT_OWNER_TOKEN.")
        if self.allowed:
            who = f"{user} may not start runs here" if user else "Starting runs here needs a sign-in"
            raise UserError(f"{who}: ask the page's owner, type the owner's token, or run Low-Bit Lab on your machine.")
        raise UserError("Starting runs here needs the owner's token: type it, or run Low-Bit Lab on your machine.")
