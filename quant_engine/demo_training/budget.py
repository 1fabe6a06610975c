"""A stage's clock, log and checkpoint: a stage that is killed at any moment goes on where it last saved."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from quant_engine import disk

SAVE_EVERY = 120.0  # seconds


class Stage:
    """One stage of training: so many minutes of work, over as many starts as it takes.

    `state` holds the live objects (modules, optimizers) by name; they are saved together with the step and the time
    worked so far, and restored when the stage is started again. `fraction` runs from 0 to 1 over the stage's minutes.
    """

    def __init__(self, folder: Path, name: str, minutes: float, state: dict[str, Any]) -> None:
        self.path = folder / f"{name}.pt"
        self.log_path = folder / f"{name}.log.jsonl"
        self.name, self.minutes, self.state = name, minutes, state
        self.step, self._worked, self._started, self._saved = 0, 0.0, time.monotonic(), time.monotonic()
        self.threads = Threads(torch.device("cpu" if not torch.cuda.is_available() else "cuda"))
        if self.path.exists():
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            for key, live in state.items():
                live.load_state_dict(saved[key])
            self.step, self._worked = saved["step"], saved["worked"]
            print(f"{name}: goes on at step {self.step} after {self._worked / 60:.1f} min", flush=True)

    @property
    def worked(self) -> float:
        """Seconds of work, over all starts."""
        return self._worked + time.monotonic() - self._started

    @property
    def fraction(self) -> float:
        return min(1.0, self.worked / (60 * self.minutes))

    @property
    def over(self) -> bool:
        return self.fraction >= 1.0

    def learning_rate(self, peak: float, warm_up: int = 100) -> float:
        """Linear warm-up over steps, then a cosine over the stage's time down to 3% of the peak."""
        return (
            peak * min(1.0, (self.step + 1) / warm_up) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * self.fraction)))
        )

    def advance(self) -> None:
        """Count a step; save where the last save is long enough ago."""
        self.step += 1
        self.threads.step()
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the checkpoint aside and rename it, so that a kill leaves the last one whole."""
        states = {key: live.state_dict() for key, live in self.state.items()}
        with disk.replacing(self.path) as aside:
            torch.save({**states, "step": self.step, "worked": self.worked}, aside)
        self._saved = time.monotonic()

    def log(self, **values: float | str) -> None:
        """One line of the log, also printed."""
        record = {"stage": self.name, "minutes": round(self.worked / 60, 2), "step": self.step}
        record |= {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k} {v}" for k, v in record.items()), flush=True)


class Threads:
    """How many CPU threads a step should use while the machine does other work too: tried out now and then.

    Two threads that wait for each other are slower than one where the second core is taken, and faster where it isn't.
    """

    def __init__(self, device: torch.device, every: float = 60.0, trial: int = 4) -> None:
        most = torch.get_num_threads()
        self.choices = sorted({1, most}) if device.type == "cpu" else []
        self.every, self.trial = every, trial
        self._next, self._queue, self._times = 0.0, [], {}
        self._last = time.monotonic()

    def step(self) -> None:
        """Call once after each step."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        if len(self.choices) < 2:
            return
        if self._queue:
            self._times.setdefault(self._queue.pop(0), []).append(took)
            if self._queue:
                torch.set_num_threads(self._queue[0])
            else:
                torch.set_num_threads(min(self._times, key=lambda n: sorted(self._times[n])[len(self._times[n]) // 2]))
                self._next = now + self.every
        elif now > self._next:
            self._queue = [n for n in self.choices for _ in range(self.trial)]
            self._times = {}
            torch.set_num_threads(self._queue[0])


class Average:
    """A running mean that forgets: about the last `span` values count."""

    def __init__(self, span: int = 50) -> None:
        self.span, self.count, self.values = span, 0, {}

    def add(self, **values: float) -> dict[str, float]:
        self.count = min(self.span, self.count + 1)
        for key, value in values.items():
            old = self.values.get(key, value)
            self.values[key] = old + (value - old) / self.count
        return self.values
