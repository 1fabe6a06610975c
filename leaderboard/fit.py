"""What fits a GPU: the memory of a quantized model while it answers, part by part, and the settings that fit, ranked.

    weights       quantized weights with all side data, and what stays in 16 bit (embeddings, head, norms, vision)
    KV cache      2 · layers · key width · tokens · batch, 16 bit each; a picture takes its tokens too
    activations   the widest block while the prompt is read: hidden state and MLP, in 16 bit, of every token at once,
                  and the logits of one token, in 32 bit
    overhead      what a CUDA process holds before any model: context, libraries, workspaces

An estimate; `checked` puts it beside the peaks that runs measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leaderboard import quality
from leaderboard.analysis import Board
from leaderboard.columns import Column, headline
from leaderboard.plot import Figure
from leaderboard.sizes import Shape, shapes
from leaderboard.view import Fitted
from quant_engine import notation
from quant_engine.evaluate.perplexity import windows_at_once
from quant_engine.spec import UserError

GIB = 2**30
OVERHEAD = 0.75 * GIB
HOST_OVERHEAD = 0.6 * GIB
"""What a CPU process with torch and transformers loaded holds before any model."""
PARTS = ("weights", "16-bit parts", "KV cache", "activations", "overhead")
_COLORS = ("#2f78c4", "#1f8fa3", "#d9730d", "#8a5cc9", "#7d7a74")


@dataclass(frozen=True)
class Card:
    """A GPU: `memory` and memory `bandwidth` in GB/s as its maker states them, where "GB" of memory are GiB.

    `ecc` says that error correction is on as delivered and lives in the same memory (GDDR6 cards for servers). It takes
    a sixteenth: nvidia-smi shows 15360 MiB of a T4, 23034 of an L4, 23028 of an A10, 46068 of an L40S; and 81920 of an
    A100 80 GB, whose HBM has room of its own for it.
    """

    name: str
    memory: float
    bandwidth: float
    ecc: bool = False

    @property
    def usable(self) -> float:
        """GiB that programs can have."""
        return self.memory * 15 / 16 if self.ecc else self.memory


# Memory and bandwidth as published for each card; where only bus and data rate are, bandwidth is their product. Cards
# that come in several forms are the SXM (or OAM) ones; the PCIe cards are slower.
CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("RTX 3060", 12, 360),  # the 12 GB card: 192 bit at 15 Gbit/s
        Card("RTX 4060 Ti 16 GB", 16, 288),  # 128 bit at 18 Gbit/s
        Card("RTX 3090", 24, 936),  # 384 bit at 19.5 Gbit/s
        Card("RTX 4080", 16, 716.8),  # 256 bit at 22.4 Gbit/s
        Card("RTX 4090", 24, 1008),  # 384 bit at 21 Gbit/s
        Card("RTX 5090", 32, 1792),  # 512 bit at 28 Gbit/s
        Card("T4", 16, 320, ecc=True),  # 256 bit at 10 Gbit/s
        Card("L4", 24, 300, ecc=True),
        Card("A10", 24, 600, ecc=True),
        Card("RTX A6000", 48, 768),  # 384 bit at 16 Gbit/s
        Card("L40S", 48, 864, ecc=True),
        Card("A100 40 GB", 40, 1555),
        Card("A100 80 GB", 80, 2039),
        Card("H100 80 GB", 80, 3350),
        Card("H200", 141, 4800),
        Card("MI300X", 192, 5300),
    )
}


@dataclass(frozen=True)
class Need:
    """Bytes that a setting needs, by part."""

    weights: float
    kept: float
    cache: float
    activations: float
    overhead: float

    @property
    def parts(self) -> dict[str, float]:
        return dict(zip(PARTS, vars(self).values(), strict=True))

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    @property
    def read_per_token(self) -> float:
        """Bytes that every decoded token has to read: all weights and the cache."""
        return self.weights + self.kept + self.cache


def memory_of(fitted: Fitted) -> float:
    """The GPU's memory in GiB that was asked for. Raises UserError for an unknown card or none at all."""
    if fitted.card is None:
        if fitted.memory is None:
            raise UserError("Choose a card, or type how many GiB of memory there are.")
        return fitted.memory
    if fitted.card not in CARDS:
        raise UserError(f"There is no card {fitted.card!r} in the list; type its memory in GiB instead.")
    return CARDS[fitted.card].usable


def need(
    shape: Shape, stored_bits: float, *, context: int, batch: int = 1, pictures: int = 0, bytes_each: int = 2,
    overhead: float = OVERHEAD,
) -> Need:  # fmt: skip
    """What a model with this many stored bits per quantized weight needs for `context` tokens of text and pictures.

    `bytes_each` is the width of everything that is not quantized: 2 on a GPU, 4 for float32 on a CPU.
    """
    tokens = batch * (context + pictures * shape.picture_tokens)
    widest = 2 * shape.hidden + 2 * shape.intermediate
    return Need(
        weights=shape.quantized * stored_bits / 8,
        kept=shape.kept * bytes_each,
        cache=2 * shape.layers * shape.key_width * tokens * bytes_each,
        activations=widest * tokens * bytes_each + shape.vocabulary * batch * 4,
        overhead=overhead,
    )


def best_quality(board: Board, model: str) -> Column:
    """The column that ranks a model's settings where nobody says. Raises UserError if the model has no score."""
    mask = (board.rows["model"] == model).to_numpy() & (board.rows["w_bits"] < 16).to_numpy()
    filled = (~np.isnan(board.values[mask])).sum(axis=0)
    known = np.flatnonzero(filled)
    found = headline([board.columns[place] for place in known], filled[known])
    if found is None:
        raise UserError(f"There is no result of {model} yet.")
    return found


def settings(board: Board, fitted: Fitted, task: str | None = None) -> pd.DataFrame:
    """Every setting of the model with its need, those that fit first, best quality first among them.

    Columns: label, value (of the ranking task), loss, stored_bits, the parts and `total` in GiB, `fits`, and
    `tokens_per_s`, the most that the card's bandwidth allows (NaN where that is not known). Raises UserError.
    """
    if fitted.model not in shapes():
        raise UserError(f"The shape of {fitted.model} is not known, so its memory can't be estimated.")
    memory, shape = memory_of(fitted), shapes()[fitted.model]
    column = best_quality(board, fitted.model) if task is None else quality.column_of_task(board, task)
    found = quality.points(board, fitted.model, column.task).dropna(subset="stored_bits").reset_index(drop=True)
    needs = [
        need(shape, bits, context=fitted.context, batch=fitted.batch, pictures=fitted.pictures)
        for bits in found["stored_bits"]
    ]
    for part in PARTS:
        found[part] = [one.parts[part] / GIB for one in needs]
    found["total"] = [one.total / GIB for one in needs]
    found["fits"] = found["total"] <= memory
    bandwidth = CARDS[fitted.card].bandwidth * 1e9 if fitted.card else np.nan
    found["tokens_per_s"] = [bandwidth / one.read_per_token for one in needs]
    found["quality"] = found["value"] if column.better == "higher" else -found["value"]
    found = found.sort_values(["fits", "quality", "total"], ascending=[False, False, True], kind="stable")
    return found.drop(columns="quality").reset_index(drop=True)


def figure(board: Board, fitted: Fitted, task: str | None = None) -> Figure:
    """The need of the best settings as stacked bars against the card, and all settings in the table behind it."""
    column = best_quality(board, fitted.model) if task is None else quality.column_of_task(board, task)
    found, memory = settings(board, fitted, column.task), memory_of(fitted)
    where = fitted.card or f"{memory:g} GiB"
    fitting = found[found["fits"]]
    shown = pd.concat([fitting.head(10), found[~found["fits"]].sort_values("total").head(3)])
    data = [
        {"type": "bar", "orientation": "h", "name": part, "y": list(shown["label"]),
         "x": [round(float(value), 4) for value in shown[part]], "marker": {"color": color},
         "hovertemplate": "%{y}<br>" + part + ": %{x:.2f} GiB<extra></extra>"}
        for part, color in zip(PARTS, _COLORS, strict=True)
    ]  # fmt: skip
    asked = f"{fitted.context:,} tokens" + (f", batch {fitted.batch}" if fitted.batch > 1 else "")
    asked += f", {fitted.pictures} picture{'s' if fitted.pictures > 1 else ''}" if fitted.pictures else ""
    if fitting.empty:
        least = found["total"].min()
        finding = f"No setting of {fitted.model} fits {where} with {asked}: the smallest needs {least:.1f} GiB."
    else:
        best = fitting.iloc[0]
        speed = f", at most {best['tokens_per_s']:.0f} tokens/s" if np.isfinite(best["tokens_per_s"]) else ""
        finding = (
            f"{len(fitting)} of {len(found)} settings of {fitted.model} fit {where} with {asked}. "
            f"Best: {best['label']} ({column.title} {best['text']}), {best['total']:.1f} GiB{speed}."
        )
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "memory while answering, GiB"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 150 + 28 * len(shown),
        "shapes": [
            {"type": "line", "x0": memory, "x1": memory, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": "var(--alarm)", "width": 2}}
        ],
        "annotations": [
            {"x": memory, "yref": "paper", "y": 1, "yanchor": "bottom", "text": where, "showarrow": False}
        ],
    }  # fmt: skip
    table = pd.DataFrame(
        {
            "Setting": found["label"],
            "Fits": np.where(found["fits"], "yes", "no"),
            f"{column.title} {column.arrow}": found["text"],
            "Stored bits": found["stored_bits"].round(2),
            **{f"{part}, GiB": found[part].round(2) for part in PARTS},
            "Total, GiB": found["total"].round(2),
            "Tokens/s at most": found["tokens_per_s"].round(0),
        }
    ).dropna(axis=1, how="all")
    return Figure("fit", "What fits", finding, data, layout, table)


def checked(results: pd.DataFrame) -> pd.DataFrame:
    """The estimate beside the peak memory that each measured run of a known model states, and the error in percent.

    The estimate is made for the run's windows, precision and device, with what an evaluation holds beyond an answer:
    the logits of all tokens that it reads at once, and their log-probabilities of one window. A run's peak includes its
    quantization; runs that trained are left out, for their training is the peak. On a GPU it is the peak of tensors,
    what the process holds before any model left out. Columns: run, Setting, Estimated GB, Measured GB, Error %.
    """
    trained = results["options"].astype(object).fillna("").str.contains('"steps"')
    runs = results[(results["source"] == "measured") & results["peak_memory_bytes"].notna() & ~trained]
    told = []
    for row in runs.drop_duplicates("run_id").to_dict("records"):
        shape, window = shapes().get(row["model"]), re.search(r"window (\d+)", str(row["conditions"]))
        if shape is None or window is None or pd.isna(row["stored_bits"]):
            continue
        command = str(row["command"])
        on_gpu = "--device cuda" in command
        each = 4 if "--dtype float32" in command or not on_gpu else 2
        tokens = int(window[1])
        batch = windows_at_once(tokens)
        one = need(
            shape, row["stored_bits"], context=tokens, batch=batch, bytes_each=each,
            overhead=0 if on_gpu else HOST_OVERHEAD,
        )  # fmt: skip
        total = one.total + shape.vocabulary * tokens * (batch * each + 4)
        setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
        measured = row["peak_memory_bytes"]
        told.append(
            (row["run_id"], f"{row['model']} {setting}", total / 1e9, measured / 1e9, 100 * (total / measured - 1))
        )
    return pd.DataFrame(told, columns=["Run", "Setting", "Estimated GB", "Measured GB", "Error %"]).round(2)
