"""Run folders to read, made as the engine makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from quant_engine.results import ItemOutput, Result
from quant_engine.runs import folder as run_folder
from quant_engine.spec import Calibration, QuantSetting, RunSpec, WeightSpec

MakeRun = Callable[..., Path]


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """An empty results folder."""
    folder = tmp_path / "results"
    monkeypatch.setenv("LOWBIT_RESULTS", str(folder))
    return folder


def measured(spec: RunSpec, track: str = "llm_ptq", **fields: object) -> Result:
    """A number of a run of `spec`, with 0.3 bits of side data for each weight."""
    setting = spec.weights.setting
    return Result(
        run_id=spec.run_id,
        source="measured",
        model=spec.weights.model,
        track=track,
        method=setting.method,
        w_bits=setting.w_bits,
        group_size=setting.group_size,
        stored_bits=16 if setting.method == "fp16" else setting.w_bits + 0.3,
        **fields,
    )


@pytest.fixture
def make_run(results) -> MakeRun:
    """Writes a run folder: make_run(method="rtn", bits=4, group=64, limit=8, perplexity=12.3)."""

    def make(
        *,
        model: str = "demo-llm",
        method: str = "rtn",
        bits: float = 4,
        group: int | None = 64,
        limit: int | None = 8,
        status: str = "ok",
        track: str = "llm_ptq",
        **values: float | None,
    ) -> Path:
        setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=bits, group_size=group)
        spec = RunSpec(weights=WeightSpec(model=model, setting=setting), tasks=tuple(values), limit=limit)
        rows = [
            measured(
                spec,
                track,
                task=task,
                metric="perplexity",
                value=value,
                status=status,
                items=limit,
                duration_s=90,
                peak_memory_bytes=2_000_000_000,
            )
            for task, value in values.items()
        ]
        return run_folder.write(spec, {}, rows, [], {}, "log")

    return make


@pytest.fixture
def write_run(results) -> Callable[..., str]:
    """Writes a run with items: write_run([1.0, 0.0], method="rtn", bits=4) scored so on each; gives its id."""

    def write(
        scores: list[float],
        method: str = "rtn",
        bits: float = 4,
        task: str = "arc_easy",
        standard_error: float | None = None,
        at_once: int | None = None,
    ) -> str:
        setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=bits, group_size=64)
        calibration = Calibration(at_once=at_once) if method == "gptq" else None
        weights = WeightSpec(model="demo-llm", setting=setting, calibration=calibration)
        spec = RunSpec(weights=weights, tasks=(task,), limit=len(scores))
        row = measured(
            spec,
            task=task,
            metric="accuracy",
            value=100 * mean(scores),
            standard_error=standard_error,
            data_revision="rows 1",
            items=len(scores),
        )
        items = [
            ItemOutput(
                item=str(number),
                prompt=f"q{number}",
                gold=["x"],
                prediction="x",
                score=score,
                choices=["x", "y"],
                log_probabilities=[-1.0, -2.0],
            )
            for number, score in enumerate(scores)
        ]
        return run_folder.write(spec, {}, [row], [], {task: items}, "").name

    return write
