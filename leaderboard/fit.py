"""What fits a GPU: the memory of a quantized model while it answers, part by part, and the settings that fit, ranked.

    weights       quantized weights with all side data, and what stays in 16 bit (embeddings, head, norms, vision)
    KV cache      2 · layers · key width · tokens · batch, 16 bit each; a picture takes its tokens too
    activations   the widest block while the prompt is read: hidden state and MLP, in 16 bit, of every token at once,
                  and the logits of one token, in 32 bit
    overhead      what a CUDA process holds before any model: context, libraries, workspaces

An estimate; `checked` compares it with the peaks that runs measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from leaderboard import quality
from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column, headline
from leaderboard.plot import Figure
from leaderboard.store import method_called
from leaderboard.view import Fitted
from quant_engine import notation
from quant_engine.evaluate.perplexity import windows_at_once
from quant_engine.models.shapes import Shape, shapes
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
    unquantized: float
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
    def model(self) -> float:
        """Bytes of all weights."""
        return self.weights + self.unquantized

    @property
    def read_per_token(self) -> float:
        """Bytes that every decoded token has to read: all weights and the cache."""
        return self.weights + self.unquantized + self.cache


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

    `bytes_each` is the width of what is computed with: 2 on a GPU, 4 for float32 on a CPU. Embedding and output head
    are held in 16 bit on both, and so are the weights of an unquantized model.
    """
    tokens = batch * (context + pictures * shape.picture_tokens)
    widest = 2 * shape.hidden + 2 * shape.intermediate
    return Need(
        weights=shape.quantized * stored_bits / 8,
        unquantized=shape.embeddings * 2 + (shape.unquantized - shape.embeddings) * bytes_each,
        cache=2 * shape.layers * shape.key_width * tokens * bytes_each,
        activations=widest * tokens * bytes_each + shape.vocabulary * batch * 4,
        overhead=overhead,
    )


def best_quality(board: Board, model: str) -> Column:
    """The column that ranks a model's settings where nobody says. Raises UserError if the model has no score."""
    mask = (board.rows["model"] == model).to_numpy() & (board.rows["w_bits"] < 16).to_numpy()
    filled = (~np.isnan(board.values[mask])).sum(axis=0)
    with_results = np.flatnonzero(filled)
    column = headline([board.columns[index] for index in with_results], filled[with_results])
    if column is None:
        raise UserError(f"There is no result of {model} yet.")
    return column


def qualities(board: Board, model: str) -> list[Column]:
    """The scores that a model's quantized settings have, the one that ranks best first. Raises UserError if it has
    none."""
    first = best_quality(board, model)
    rows = ((board.rows["model"] == model) & (board.rows["w_bits"] < 16)).to_numpy()
    filled = (board.cells[rows] != Cell.MISSING).any(axis=0)
    others = [c for c, any_ in zip(board.columns, filled, strict=True) if any_ and c.compared and c is not first]
    return [first, *others]


def settings(board: Board, fitted: Fitted) -> pd.DataFrame:
    """Every setting of the model with its need, those that fit first, best quality first among them.

    Columns: label, value (of the ranking task), loss, stored_bits, the parts and `total` in GiB, `fits`, and
    `tokens_per_s`, the most that the card's bandwidth allows (NaN where that is not known). Raises UserError.
    """
    if fitted.model not in shapes():
        raise UserError(f"The shape of {fitted.model} is not known, so its memory can't be estimated.")
    memory, shape = memory_of(fitted), shapes()[fitted.model]
    column = best_quality(board, fitted.model)
    rows = quality.points(board, fitted.model, column.task).dropna(subset="stored_bits").reset_index(drop=True)
    needs = [
        need(shape, bits, context=fitted.context, batch=fitted.batch, pictures=fitted.pictures)
        for bits in rows["stored_bits"]
    ]
    for part in PARTS:
        rows[part] = [setting.parts[part] / GIB for setting in needs]
    rows["total"] = [setting.total / GIB for setting in needs]
    rows["fits"] = rows["total"] <= memory
    bandwidth = CARDS[fitted.card].bandwidth * 1e9 if fitted.card else np.nan
    rows["tokens_per_s"] = [bandwidth / setting.read_per_token for setting in needs]
    rows["quality"] = rows["value"] if column.better == "higher" else -rows["value"]
    rows = rows.sort_values(["fits", "quality", "total"], ascending=[False, False, True], kind="stable")
    return rows.drop(columns="quality").reset_index(drop=True)


def figure(board: Board, fitted: Fitted) -> Figure:
    """The need of the best settings as stacked bars against the card, and all settings in the table behind it."""
    column = best_quality(board, fitted.model)
    rows, memory = settings(board, fitted), memory_of(fitted)
    card = fitted.card or f"{memory:g} GiB"
    fitting = rows[rows["fits"]]
    bars = pd.concat([fitting.head(10), rows[~rows["fits"]].sort_values("total").head(3)])
    data = [
        {"type": "bar", "orientation": "h", "name": part, "y": list(bars["label"]),
         "x": [round(float(value), 4) for value in bars[part]], "marker": {"color": color},
         "hovertemplate": "%{y}<br>" + part + ": %{x:.2f} GiB<extra></extra>"}
        for part, color in zip(PARTS, _COLORS, strict=True)
    ]  # fmt: skip
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "memory while answering, GiB"}, "automargin": True, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 150 + 28 * len(bars),
        "shapes": [
            {"type": "line", "x0": memory, "x1": memory, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": "var(--alarm)", "width": 2}}
        ],
        "annotations": [
            {"x": memory, "yref": "paper", "y": 1, "yanchor": "bottom", "text": card, "showarrow": False}
        ],
    }  # fmt: skip
    table = pd.DataFrame(
        {
            "Setting": rows["label"],
            "Fits": np.where(rows["fits"], "yes", "no"),
            f"{column.title} {column.arrow}": rows["text"],
            "Stored bits": rows["stored_bits"].round(2),
            **{f"{part}, GiB": rows[part].round(2) for part in PARTS},
            "Total, GiB": rows["total"].round(2),
            "Tokens/s at most": rows["tokens_per_s"].round(0),
        }
    ).dropna(axis=1, how="all")
    return Figure("fit", "What fits", _finding(fitted, rows, column, card), data, layout, table)


def _finding(fitted: Fitted, rows: pd.DataFrame, column: Column, card: str) -> str:
    """How many of the settings in `rows` fit, and the best of them."""
    load = f"{fitted.context:,} tokens" + (f", batch {fitted.batch}" if fitted.batch > 1 else "")
    load += f", {fitted.pictures} picture{'s' if fitted.pictures > 1 else ''}" if fitted.pictures else ""
    fitting = rows[rows["fits"]]
    if fitting.empty:
        return (
            f"No setting of {fitted.model} fits {card} with {load}: the smallest needs {rows['total'].min():.1f} GiB."
        )
    best = fitting.iloc[0]
    speed = f", at most {best['tokens_per_s']:.0f} tokens/s" if np.isfinite(best["tokens_per_s"]) else ""
    return (
        f"{len(fitting)} of {len(rows)} settings of {fitted.model} fit {card} with {load}. "
        f"Best: {best['label']} ({column.title} {best['text']}), {best['total']:.1f} GiB{speed}."
    )


def checked(results: pd.DataFrame) -> pd.DataFrame:
    """The estimate and the peak memory of each measured run of a known model, and the error in percent.

    The estimate is made for the run's windows, precision and device, with what an evaluation holds beyond an answer:
    the logits of all tokens that it reads at once, and their log-probabilities of one window. A run's peak includes its
    quantization; runs that trained are left out, for their training is the peak. On a GPU it is the peak of tensors,
    what the process holds before any model left out. Columns: run, Setting, Estimated GB, Measured GB, Error %.
    """
    runs = results[results["source"] == "measured"].dropna(subset=["peak_memory_bytes", "stored_bits"])
    rows = []
    for run in runs.drop_duplicates("run_id").to_dict("records"):
        shape, method = shapes().get(run["model"]), method_called(run["method"])
        if shape is None or (method and (method.train or method.fine_tunes)):
            continue
        on_gpu, bytes_each = run["device"] == "cuda", 4 if run["dtype"] == "float32" else 2
        tokens = int(run["window"])
        batch = windows_at_once(tokens)
        answer = need(
            shape, run["stored_bits"], context=tokens, batch=batch, bytes_each=bytes_each,
            overhead=0 if on_gpu else HOST_OVERHEAD,
        )  # fmt: skip
        estimate = answer.total + shape.vocabulary * tokens * (batch * bytes_each + 4)
        peak = run["peak_memory_bytes"]
        setting = notation.setting(run["method"], run["w_bits"], run["a_bits"], run["group_size"])
        label, error = f"{run['model']} {setting}", 100 * (estimate / peak - 1)
        rows.append((run["run_id"], label, estimate / 1e9, peak / 1e9, error))
    return pd.DataFrame(rows, columns=["Run", "Setting", "Estimated GB", "Measured GB", "Error %"]).round(2)
