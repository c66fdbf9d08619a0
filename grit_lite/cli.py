"""The commands. Each explains itself in `--help`; results go to stdout, progress and errors to stderr.

Nothing heavy is imported before a command needs it, so that `--help` and usage errors are instant.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grit_lite import __version__, processes
from grit_lite.answer import plain
from grit_lite.errors import DataError, Elsewhere, GritLiteError, Stopped, UsageError
from grit_lite.recipe import Recipe, load_recipe, recipe_files

app = typer.Typer(
    name="grit-lite",
    help="Teach a vision-language model to think with boxes, on one GPU (GRIT, arXiv 2505.15879).",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look after training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")
lmms_app = typer.Typer(help="Ask lmms-eval's benchmarks of a model of grit-lite.", no_args_is_help=True)
app.add_typer(lmms_app, name="lmms")


class Form(StrEnum):
    merged = "merged"
    gguf = "gguf"
    adapter = "adapter"


class Precision(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class BadRows(StrEnum):
    refuse = "refuse"
    skip = "skip"


class Split(StrEnum):
    train = "train"
    val = "val"
    all = "all"


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs to read, and nothing else.")]
Out = Annotated[
    Path | None, typer.Option("--output", "-o", help="The run folder.", show_default="runs/<recipe>-<time>")
]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"grit-lite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """`main` finds --debug wherever it stands; it is here to be seen in --help."""


@app.command()
def train(
    triplets: Annotated[int | None, typer.Option(help="How many image-question-answer triplets to draw.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe that comes with grit-lite, or a .yaml file.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value; as often as you like.")] = None,
    output: Out = None,
    bad_rows: Annotated[BadRows | None, typer.Option(help="What to do when rows of the data are bad.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train on a few triplets: question, image, answer; no chains, no boxes.

    Example: [bold]grit-lite train --triplets 20[/bold]
    """
    from grit_lite.run import Run, new_folder, open_together

    def choose() -> Recipe:
        name = recipe or _default_recipe()
        return load_recipe(name, settings or (), triplets=triplets, bad_rows=bad_rows)

    def open_run() -> Run:
        if resume:
            run = _run_to_resume(output, triplets, recipe, settings, bad_rows, dry_run or None)
            _check_names(run.recipe)
            return run
        chosen = choose()
        _check_names(chosen)
        return Run.create(output or new_folder(chosen), chosen)

    if dry_run and not resume:
        return _print_recipe(choose().model_dump(mode="json"), as_json)
    processes.join()
    run = open_together(open_run)

    from grit_lite.training import train as carry_out

    if processes.is_first():
        err.print(Text(f"Run folder: {run.folder}"))
    result = carry_out(run, as_json=as_json)
    if result is None:
        return None
    if as_json:
        print(json.dumps({"event": "done", **result}, ensure_ascii=False))
    else:
        _print_outcome(run.folder, [result["evaluation"]] if result["evaluation"] else [])
    return None


def _check_names(recipe: Recipe) -> None:
    """Refuse data, a model, a reward, a judge or a backend that cannot be had before there is a run folder."""
    from grit_lite.backends import find_spec, import_libraries, model_location
    from grit_lite.judge import judge_of
    from grit_lite.machine import find_gpu, number_format
    from grit_lite.rewards import build_scorer
    from grit_lite.triplets import require_fetched

    recipe.of_one(processes.count())
    if recipe.evaluate != "none":
        from grit_lite.evaluate.benchmarks import find

        find(recipe.evaluate)
    require_fetched(recipe.data)
    model_location(recipe.model)
    build_scorer(recipe.rewards, judge_of(recipe))
    number_format(recipe.dtype, find_gpu())
    import_libraries(recipe)
    find_spec(recipe)  # not before Unsloth, which chooses how the hub's client downloads


def _run_to_resume(output: Path | None, *others: Any) -> Any:
    from grit_lite.run import Run

    if output is None:
        raise UsageError("--resume needs the folder of the run to go on with: --output runs/NAME.")
    if any(other is not None for other in others):
        raise UsageError("--resume goes on with the recipe of the run folder; it takes --output and --json only.")
    return Run.resume(output)


def _default_recipe() -> str:
    from grit_lite.machine import default_recipe, find_gpu

    name, why = default_recipe(find_gpu())
    err.print(Text(f"Recipe: {name}, because none was named with --recipe and {why}."), soft_wrap=True)
    return name


def _print_tables(folder: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    from grit_lite.evaluate import table
    from grit_lite.evaluate.faithfulness.table import table as faithfulness_table

    for evaluation in evaluations:
        out.print(table(evaluation))
        if "faithfulness" in evaluation:
            out.print(faithfulness_table(evaluation["faithfulness"]))
        out.print(Text(f"Gallery: {folder / 'eval' / evaluation['benchmark']}.html", overflow="fold"))


def _print_outcome(folder: Path, evaluations: Sequence[dict[str, Any]]) -> None:
    if evaluations:
        _print_tables(folder, evaluations)
    out.print(Text(f"Report: {folder / 'report.html'}", overflow="fold"))
    out.print(Text(f"Ask it: grit-lite chat IMAGE --model {folder}", overflow="fold"))


@app.command(name="eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="In the place of a run: a model by its name or folder, or an adapter's folder.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="For a model's results.", show_default="runs/model-<name>")
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            help="A name, or file.py:NAME; as often as you like.",
            show_default="the recipe's, else shapes",
        ),
    ] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="How many of each benchmark.")] = None,
    source: Annotated[Path | None, typer.Option(help="A copy of the benchmark of your own.")] = None,
    compare: Annotated[str, typer.Option(help="base, or the folder of another run to put beside it.")] = "base",
    seeds: Annotated[int | None, typer.Option(min=1, help="Sample each answer so often, instead of greedily.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of sampling.", show_default="the recipe's with --seeds, else 0")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="none, rules, or a model's name at $OPENAI_BASE_URL.", show_default="the recipe's"),
    ] = None,
    faithfulness: Annotated[
        bool,
        typer.Option("--faithfulness", help="Ask again with boxes masked and changed: does it matter?"),
    ] = False,
    faithfulness_questions: Annotated[
        int | None, typer.Option(min=1, help="Of how many answers with boxes.", show_default="all")
    ] = None,
    faithfulness_judge: Annotated[
        str | None,
        typer.Option(
            help="Who says which boxes a chain speaks of: a model at $OPENAI_BASE_URL that sees.",
            show_default="the model itself",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at the same time.")] = 32,
    shard: Annotated[
        str | None, typer.Option(help="i/n: ask this part only, of n processes; the last one makes the table.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a run, base beside tuned, or a model, with intervals. Interrupted, it goes on where it was.

    Example: [bold]grit-lite eval runs/tiny-20260102-030405[/bold]
    """
    from grit_lite.evaluate.runner import Shard
    from grit_lite.evaluating import Wish, evaluate_again

    if (run is None) == (model is None):
        raise UsageError("Name what is to be measured: a run folder, or with --model a model.")
    if source is not None and len(benchmarks or ()) != 1:
        raise UsageError("--source is a copy of one benchmark; name it, and it alone, with --benchmark.")
    if shard is not None and processes.count() > 1:
        raise UsageError("A launcher has divided the questions already; leave --shard out.")
    if run is None and compare != "base":
        raise UsageError("--compare puts another run beside a run; a model has none.")
    if faithfulness_questions is not None and not faithfulness:
        raise UsageError("--faithfulness-questions says how many; add --faithfulness.")
    if faithfulness_judge is not None and not faithfulness:
        raise UsageError("--faithfulness-judge says who reads; add --faithfulness.")
    processes.join()
    part = Shard(processes.index(), processes.count()) if shard is None else Shard.read(shard)
    against = None if compare == "base" else Path(compare)
    asked = (tuple(benchmarks or ()), questions, source, against, seeds, temperature, judge, batch_size, part)
    wish = Wish(*asked, faithfulness, faithfulness_questions, faithfulness_judge)
    folder = run or output or Path("runs") / f"model-{Path(str(model)).name}"
    results = evaluate_again(folder, wish) if run else _evaluate_model(str(model), folder, wish)
    if as_json:
        for result in results:
            print(json.dumps(result, ensure_ascii=False))
    elif run and results:
        _print_outcome(run, results)
    elif results:
        _print_tables(folder, results)
    elif processes.is_first():
        err.print(Text(f"Part {shard} is asked. Once all parts are, the last one, or this without --shard, sums up."))


def _evaluate_model(model: str, folder: Path, wish: Any) -> Any:
    from grit_lite.chat.choice import find_model
    from grit_lite.evaluating import evaluate_model

    chosen = find_model(model)
    err.print(Text(plain(chosen.why)), soft_wrap=True)
    return evaluate_model(folder, chosen.recipe, chosen.adapter, wish)


@app.command()
def chat(
    image: Annotated[Path | None, typer.Argument(help="The image to ask about.")] = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="Answer this and leave.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A run folder, an adapter, or a model.", show_default="the newest finished run, else tiny"),
    ] = None,
    preview: Annotated[bool, typer.Option(help="Show the picture in the terminal.")] = True,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always answers alike.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Ask about an image, see the boxes; without --question, a conversation.

    Example: [bold]grit-lite chat photo.jpg --question "How many cups are there?"[/bold]
    """
    from grit_lite.chat import chat as talk

    talk(image, question, model, as_json=as_json, preview=preview, temperature=temperature)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html again: one page, no network.

    Example: [bold]grit-lite report runs/tiny-20260102-030405[/bold]
    """
    from grit_lite.report import write_report

    if not (run / "run.json").is_file():
        raise UsageError(f"{run} is not a run folder: it has no run.json.")
    print(write_report(run))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path | None, typer.Option(help="The folder to write.", show_default="RUN/export/FORMAT")] = None,
    form: Annotated[
        Form, typer.Option("--format", help="Merged weights, GGUF files (needs Unsloth), or the adapter.")
    ] = Form.merged,
    dtype: Annotated[Precision, typer.Option(help="Of merged weights; auto: as trained, else bfloat16.")] = (
        Precision.auto
    ),
    quantization: Annotated[str, typer.Option(help="Of GGUF files, in llama.cpp's words.")] = "q8_0",
    push: Annotated[str | None, typer.Option(help="Publish it on the hub as OWNER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository a private one.")] = False,
    questions: Annotated[int, typer.Option(min=0, help="How many the check asks; 0 leaves it out.")] = 16,
    as_json: Json = False,
) -> None:
    """Make a finished run into a model that others can load, serve and publish, and check that it is the same.

    Example: [bold]grit-lite export runs/tiny-20260102-030405[/bold]
    """
    from grit_lite.export import Wish
    from grit_lite.export import export as carry_out

    if private and push is None:
        raise UsageError("--private is about a repository on the hub; name it with --push OWNER/NAME.")
    wish = Wish(form.value, to, dtype.value, quantization, push, private, questions)
    result = carry_out(run, wish, say=lambda text: err.print(Text(plain(text)), soft_wrap=True))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print_export(result)


def _print_export(result: dict[str, Any]) -> None:
    for warning in result["warnings"]:
        err.print(Text(f"Warning: {plain(warning)}", style="yellow"), soft_wrap=True)
    if result["parity"]:
        out.print(Text(f"Checked: {result['parity']['said']}"), soft_wrap=True)
    out.print(Text(f"Exported: {result['folder']}  (model card: README.md)"), soft_wrap=True)
    if "pushed" in result:
        out.print(Text(f"Published: {result['pushed']}"), soft_wrap=True)
    out.print(Text(f"Serve it: {result['serve']}"), soft_wrap=True)
    if result["format"] != "gguf":
        out.print(Text(f"Ask it: grit-lite chat IMAGE --model {result['folder']}"), soft_wrap=True)


@app.command()
def rewards(
    file: Annotated[Path, typer.Argument(help="Completions, a JSON object a line; a run's samples.jsonl will do.")],
    preset: Annotated[str, typer.Option(help="grit-lite, grit-paper or grit-code.")] = "grit-lite",
    judge: Annotated[str, typer.Option(help="none, rules, or a model's name at $OPENAI_BASE_URL.")] = "none",
    as_json: Json = False,
) -> None:
    """Score completions offline, and show what every preset pays to attacks.

    Example: [bold]grit-lite rewards runs/tiny-20260102-030405/samples.jsonl --preset grit-paper[/bold]
    """
    from grit_lite.attacks import attack_table, score_file
    from grit_lite.judge import open_judge

    scored, attacks = score_file(file, preset, open_judge(judge)), attack_table()
    if as_json:
        print(json.dumps({**asdict(scored), "attacks": [asdict(row) for row in attacks]}, ensure_ascii=False))
        return
    _print_scored(scored)
    _print_attacks(attacks)


def _print_scored(scored: Any) -> None:
    grid = Table(title=f"{scored.preset} on {len(scored.rows)} completions", title_justify="left")
    for heading in ("term", "mean", "lowest", "highest"):
        grid.add_column(heading, justify="left" if heading == "term" else "right")
    for term, mean in scored.means.items():
        known = [row[term] for row in scored.rows if row[term] is not None]
        cells = (mean, min(known), max(known)) if known else (None, None, None)
        grid.add_row(term, *("–" if cell is None else f"{cell:.3f}" for cell in cells))
    out.print(grid)
    for flag in scored.flags:
        lines = ", ".join(map(str, flag.lines))
        out.print(Text(f"{flag.term}: {flag.reason} ({flag.rows} rows; lines {lines})", style="yellow"), soft_wrap=True)


def _print_attacks(rows: Any) -> None:
    presets = list(rows[0].totals)
    grid = Table(title="What each preset pays: red is more than an honest wrong answer earns", title_justify="left")
    grid.add_column("completion")
    for preset in presets:
        grid.add_column(preset, justify="right")
    for row in rows:
        cells = [Text(f"{row.totals[p]:.2f}", style="red" if p in row.earns_more else "") for p in presets]
        grid.add_row(Text(row.name, style="" if row.role == "attack" else "bold"), *cells)
    out.print(grid)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Option(help="Only this recipe, by name or .yaml file.")] = None,
    as_json: Json = False,
) -> None:
    """See what this machine has, what a run would use, and what each recipe needs in memory.

    Example: [bold]grit-lite doctor[/bold]
    """
    from grit_lite.doctor import examine, show

    facts = examine(recipe)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        show(facts, out)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with grit-lite."""
    first_lines = {name: path.read_text().splitlines()[0].lstrip("# ") for name, path in recipe_files().items()}
    if as_json:
        print(json.dumps(first_lines))
        return
    grid = Table.grid(padding=(0, 2))
    for name, line in first_lines.items():
        grid.add_row(Text(name, style="bold"), line)
    out.print(grid)


@app.command()
def benchmarks(as_json: Json = False) -> None:
    """List the benchmarks that grit-lite can evaluate on, with the licence of their data, none of which it brings.

    Example: [bold]grit-lite benchmarks --json[/bold]
    """
    from grit_lite.evaluate.benchmarks import listing

    if as_json:
        print(json.dumps(listing()))
        return
    grid = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("name", "rows", "scorer", "verified", "licence"):
        grid.add_column(heading, no_wrap=heading != "licence", justify="right" if heading == "rows" else "left")
    for entry in listing():
        rows = f"{entry['rows']:,}" if entry["rows"] else "–"
        verified = "yes" if entry["verified"] else "no"
        grid.add_row(entry["name"], rows, entry["scorer"], verified, entry["licence"])
    out.print(grid)
    for note in dict.fromkeys(entry["note"] for entry in listing() if entry["note"]):
        of = ", ".join(entry["name"] for entry in listing() if entry["note"] == note)
        out.print(Text(f"\nNote on {of}: {note}"))


@data_app.command()
def check(
    path: Annotated[str, typer.Argument(help="A .jsonl file, a folder, 'embedded', 'grit', or 'hf:NAME'.")],
    column: Annotated[
        list[str] | None, typer.Option(help="field=name, where the data calls a field by another.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List every bad row of a data set as file:line: reason.

    Example: [bold]grit-lite data check my/triplets.jsonl[/bold]
    """
    from grit_lite.triplets import load

    pairs = [text.partition("=") for text in column or ()]
    if any(not equals for _, equals, _ in pairs):
        raise UsageError("--column is written field=name, for example --column question=q.")
    loaded = load(path, columns={field: name for field, _, name in pairs})
    rows = [{"file": row.file, "line": row.line, "reason": row.reason} for row in loaded.bad_rows]
    if as_json:
        print(json.dumps({"good": len(loaded.triplets), "bad": rows, "sha256": loaded.sha256}, ensure_ascii=False))
    else:
        for row in loaded.bad_rows:
            out.print(Text(str(row), overflow="fold"), soft_wrap=True)
    if rows:
        raise DataError(f"{path}: {len(rows)} of {len(rows) + len(loaded.triplets)} rows are bad.")
    if not as_json:
        out.print(Text(f"{path}: {len(loaded.triplets)} triplets, all good."))


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="'grit', the triplets that GRIT released.")],
    split: Annotated[Split, typer.Option(help="train: 20 triplets; val: VSR, TallyQA and GQA.")] = Split.train,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Fetch without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch GRIT's released triplets, with the images of their rows and no others.

    They go to grit-lite/data in $XDG_CACHE_HOME or ~/.cache, or to the folder that $GRIT_LITE_DATA names. Sizes are
    shown first. What is there is not fetched again: repeat the command after a failure. Then: train --set data=grit.

    Example: [bold]grit-lite data fetch grit[/bold]
    """
    from grit_lite.triplets.fetch import failure, plan_grit, summary

    if name != "grit":
        raise UsageError(
            f"There is nothing to fetch called '{name}', only 'grit'. A dataset hf:NAME is fetched when used."
        )
    plan = plan_grit(["train", "val"] if split == Split.all else [split.value])
    err.print(Text(plan.describe(), overflow="fold"), soft_wrap=True)
    if plan.missing and not yes:
        _ask_to_fetch(as_json)
    outcomes = _fetch(plan, as_json)
    if as_json:
        print(json.dumps(summary(plan, outcomes), ensure_ascii=False))
    if error := failure(plan, outcomes):
        raise error
    if not as_json:
        out.print(Text(f"All files are in {plan.folder}.", overflow="fold"), soft_wrap=True)


def _ask_to_fetch(as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask for your consent on. Say --yes to fetch without being asked.")
    if not typer.confirm("Fetch them?", err=True):
        raise typer.Exit


def _fetch(plan: Any, as_json: bool) -> list[Any]:
    from rich.progress import track

    from grit_lite.triplets.fetch import fetch_grit

    try:
        found = fetch_grit(plan)
        return list(track(found, "Fetching images", len(plan.images), console=err, disable=as_json))
    except KeyboardInterrupt:
        raise Stopped("Stopped. What has arrived is kept; the same command goes on.") from None


@lmms_app.command(name="args")
def lmms_args(
    model: Annotated[str, typer.Argument(help="A run folder, an adapter, or a model.")],
    system: Annotated[
        str | None, typer.Option(help="tuned, base or direct.", show_default="tuned where there is an adapter")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a completion, with its reasoning.", show_default="the recipe's")
    ] = None,
) -> None:
    """Print what goes behind lmms-eval's --model_args: the model, and a hash of its weights as they are now.

    Example: [bold]python -m lmms_eval --model grit_lite --model_args "$(grit-lite lmms args RUN)" --tasks pope[/bold]
    """
    from grit_lite.lmms.identity import model_args

    print(model_args(model, system, max_new_tokens))


@lmms_app.command(name="export")
def lmms_export(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    questions: Annotated[int, typer.Option(min=1, help="How many held-out questions.")] = 500,
) -> None:
    """Write our held-out scenes as a task folder for lmms-eval, with the commands to run it.

    Example: [bold]grit-lite lmms export tasks/shapes[/bold]
    """
    from grit_lite.evaluate import shapes
    from grit_lite.evaluate.question import from_triplet
    from grit_lite.lmms.tasks import export_task

    task = export_task([from_triplet(triplet) for triplet in shapes(questions)], folder, "shapes")
    print(f"Exported: {folder}, the task {task}; README.md there has the commands.")


def _print_recipe(values: dict[str, Any], as_json: bool) -> None:
    import yaml

    print(json.dumps(values) if as_json else yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


def main() -> None:
    """The `grit-lite` command: every error is one message and an exit code; tracebacks only with --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # wherever it was typed
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="grit-lite")
    except Elsewhere as error:
        sys.exit(error.exit_code)
    except GritLiteError as error:
        if debug:
            raise
        _print_error(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        _print_error(f"{type(error).__name__}: {error}\nThis is a bug in grit-lite. Please report what --debug shows.")
        sys.exit(1)


def _print_error(message: str) -> None:
    """A message may quote a file's name or a model's text, so it is made safe for the terminal."""
    where = "" if processes.is_first() else f"process {processes.index()}: "
    err.print(Text.assemble((f"error: {where}", "bold red"), plain(message)), soft_wrap=True)
