"""Options that several commands have, and where commands write."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

console = Console()
errors = Console(stderr=True)

Model = Annotated[
    str, typer.Option("--model", "-m", help="A model's id (see [bold]list models[/bold]) or the path of its folder.")
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A model's id (see [bold]list models[/bold]) or the path of its folder; with --checkpoint, the model that "
        "it was made from, where it does not say so itself.",
    ),
]
PublishedAt = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="Weights that another program quantized (GPTQ, AWQ, compressed-tensors, bitsandbytes, GGUF): a folder or "
        "a .gguf file, or OWNER/NAME or OWNER/NAME/FILE.gguf on the Hugging Face Hub.",
    ),
]
Method = Annotated[str, typer.Option(help="fp16 (unquantized) or a method of [bold]list methods[/bold].")]
Bits = Annotated[float, typer.Option("--bits", "-b", help="Weight bits, 1 to 8; 16 for fp16.")]
ABits = Annotated[int, typer.Option(help="Activation bits; 16 leaves activations alone.")]
GroupSize = Annotated[
    int | None, typer.Option("--group-size", "-g", help="Weights that share a scale; without it, a whole row does.")
]
Option = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="A method's own option as NAME=VALUE, as often as needed.")
]
Text = Annotated[
    str,
    typer.Option(
        "--calibration",
        help="builtin, or the path of a text file; for a model that takes pictures also pictures (drawn, with "
        "questions) or pictures:FOLDER (with a questions.jsonl).",
    ),
]
Samples = Annotated[int, typer.Option(help="Calibration windows.")]
Length = Annotated[int, typer.Option(help="Tokens of a calibration window.")]
Only = Annotated[
    str,
    typer.Option(
        help="Quantize these linears alone, with commas between them: attention, mlp, q_proj, …, or block-0, …; the "
        "others stay in 16 bits."
    ),
]
AtOnce = Annotated[
    int | None,
    typer.Option(
        help="Calibration windows that go through a block together: changes the order of sums alone, to see what the "
        "noise of arithmetic does; default as many as make 4,096 tokens."
    ),
]
CalibrationSeed = Annotated[int, typer.Option(help="Which calibration windows are drawn.")]
Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        "-t",
        help="Tasks with commas between (see [bold]list tasks[/bold]). A comma inside the path of perplexity:PATH is "
        "part of the path, unless a task's name follows it.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="At most so many items of each task (windows, for perplexity).")]
Windows = Annotated[
    int | None, typer.Option(help="At most so many windows of a text, where that is not the same number as --limit.")
]
Window = Annotated[
    int | None,
    typer.Option(
        help="Perplexity window in tokens; default 2048, 1024 for demo models, and never more than the model reads."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of whatever a method draws at random.")]
Dtype = Annotated[
    str | None, typer.Option(help="What the model computes in: float32 (default on the CPU), bfloat16 or float16.")
]
QuantizeDtype = Annotated[str, typer.Option(help="What quantizing computes in, whatever the model then does.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default cuda where there is one.")]
Revision = Annotated[str | None, typer.Option(help="Commit or tag of a hub model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Where runs are computed: local (here), ray (a Ray cluster) or jobs (Hugging Face Jobs); default "
        "LOWBIT_EXECUTOR, else local.",
    ),
]
