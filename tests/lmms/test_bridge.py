"""Real lmms-eval asks a taught run of the embedded model, scores its answers, and keeps them in its cache."""

import importlib.util
import json
import subprocess
import sys

import pytest

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip(
        "NOTHING WAS TESTED WITH LMMS-EVAL, which is not installed here; `make test-lmms` does it, in an environment "
        "of its own",
        allow_module_level=True,
    )

import arrangement  # noqa: F401  before lmms_eval
import datasets
import yaml
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.tasks.mmstar.utils import mmstar_process_results
from lmms_eval.tasks.pope.utils import pope_process_results
from loguru import logger
from taught import Writer

from grit_lite.answer import parse
from grit_lite.backends import Request, open_backend
from grit_lite.errors import UsageError
from grit_lite.evaluate import evaluate, shapes
from grit_lite.evaluate.question import from_triplet
from grit_lite.lmms.identity import model_args
from grit_lite.lmms.tasks import export_task
from grit_lite.run import read_rows
from grit_lite.scorers import is_right

pytestmark = pytest.mark.timeout(900)  # seconds; lmms-eval looks through all its tasks at each start
QUESTIONS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lmms")


@pytest.fixture(scope="module")
def run(folder):
    return Writer().save_run(folder / "run")


@pytest.fixture(scope="module")
def tasks(folder):
    export_task([from_triplet(triplet) for triplet in shapes(QUESTIONS)], folder / "shapes", "shapes")
    return folder / "shapes"


def ask(args, task, tasks, **options):
    """What lmms-eval returns, and the rows of our own file beside it."""
    manager = TaskManager("ERROR", include_path=str(tasks), include_defaults=False, model_name="grit_lite")
    file = tasks.parent / f"{task}-completions.jsonl"
    file.unlink(missing_ok=True)
    options = {"bootstrap_iters": 0, "batch_size": 8, **options}
    args = f"{args},completions={file}" if "use_cache" not in options else args
    return simple_evaluate("grit_lite", args, tasks=[task], task_manager=manager, **options), list(read_rows(file))


def declare(folder, task, rows, processing, metrics=None, **settings):
    """A task of a few rows with lmms-eval's own processing and, for metrics, its own aggregation."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{task}.parquet"
    features = datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "images"} for row in rows]).features
    features = datasets.Features({**features, "images": datasets.List(datasets.Image())})
    datasets.Dataset.from_list(rows, features).to_parquet(data)
    declared = {
        "task": task,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 16},
        **settings,
    }
    lines = [
        "doc_to_visual: !function task_visuals.images",
        f"process_results: !function {processing}",
        "metric_list:",
        *(f"  - metric: {name}\n    aggregation: !function {function}" for name, function in (metrics or {}).items()),
    ]
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(declared) + "\n".join(lines) + "\n")
    (folder / "task_visuals.py").write_text("def images(doc):\n    return doc['images']\n")
    return folder


POPE = "lmms_eval.tasks.pope.utils.pope"
POPE_METRICS = {f"pope_{name}": f"{POPE}_aggregate_{name}" for name in ("accuracy", "f1_score")}


@pytest.fixture(scope="module")
def pope(folder):
    """Questions about drawn scenes with the answers yes and no, in the form of POPE."""
    asked = [triplet for triplet in shapes(4 * QUESTIONS) if triplet.answer in ("yes", "no")][:QUESTIONS]
    assert {triplet.answer for triplet in asked} == {"yes", "no"}
    rows = [
        {"question_id": str(number), "question": row.question, "answer": row.answer, "images": [row.load_image()]}
        for number, row in enumerate(asked)
    ]
    return declare(folder / "pope", "small_pope", rows, f"{POPE}_process_results", POPE_METRICS)


def test_its_command_line_finds_the_accuracy_of_grit_lite_eval(run, tasks, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "grit_lite", "--model_args", model_args(str(run))]
    command += ["--tasks", "grit_lite_shapes", "--include_path", str(tasks), "--batch_size", "8"]
    done = subprocess.run([*command, "--output_path", str(tmp_path)], capture_output=True, text=True, check=False)
    (results,) = tmp_path.rglob("*results.json")
    found = json.loads(results.read_text())["results"]["grit_lite_shapes"]["accuracy,none"]
    backend = open_backend(Writer.recipe, run / "adapter")
    questions = [from_triplet(triplet) for triplet in shapes(QUESTIONS)]
    own = evaluate(backend, questions, benchmark="shapes", folder=tmp_path, systems=("tuned",), max_new_tokens=96)
    assert found == own["systems"]["tuned"]["accuracy"]["all"]["value"], done.stderr[-2000:]
    assert 0.3 < found <= 1
    rows = [row for file in (run / "lmms").iterdir() for row in read_rows(file)]
    assert [row["completion"] for row in rows] == [row["completion"] for row in read_rows(tmp_path / "shapes.jsonl")]


def test_popes_scorer_is_right_about_answers_and_wrong_about_completions(run, pope):
    result, rows = ask(model_args(str(run)), "small_pope", pope)
    gold = [doc["answer"] for doc in datasets.load_dataset("parquet", data_files=str(pope / "*.parquet"))["train"]]
    right = [is_right(row["answer"], answer) for row, answer in zip(rows, gold, strict=True)]
    assert result["results"]["small_pope"]["pope_accuracy,none"] == sum(right) / len(right) > 0.3
    docs = [{"question_id": "", "answer": answer} for answer in gold]
    whole = [pope_process_results(doc, [row["completion"]]) for doc, row in zip(docs, rows, strict=True)]
    assert sum(one["pope_accuracy"]["score"] for one in whole) == 0


@pytest.mark.parametrize(
    "chain",
    [
        '<think> A dog at {"bbox_2d": [12, 31, 299, 447]}. </think> <rethink> Not (D). </rethink> <answer> B </answer>',
        "<think> Two options. </think> <rethink> Option C) is a cat, option A. a bird. </rethink><answer>B</answer>",
    ],
)
def test_mmstars_scorer_is_right_about_answers_and_wrong_about_completions(chain):
    doc = {"answer": "B", "category": "math", "l2_category": "", "index": 0}
    handed_over, whole = (
        mmstar_process_results(doc, [text])["average"]["score"] for text in (parse(chain).answer, chain)
    )
    assert (handed_over, whole) == (1.0, 0.0)


def answers(result, task):
    return [sample["filtered_resps"][0] for sample in result["samples"][task]]


def test_its_cache_serves_the_same_weights_and_never_an_older_adapter(folder, pope, tmp_path):
    writer = Writer()
    run = writer.save_run(folder / "retrained")
    args, options = model_args(str(run)), {"use_cache": str(tmp_path)}
    first, _ = ask(args, "small_pope", pope, **options)
    asked = sorted((run / "lmms").iterdir())
    assert answers(ask(args, "small_pope", pope, **options)[0], "small_pope") == answers(first, "small_pope")
    assert sorted((run / "lmms").iterdir()) == asked, "the cache was not used, so the rest would prove nothing"
    assert "yes" in answers(first, "small_pope")

    writer.save_run(run, answer="no")
    with pytest.raises(UsageError, match="which are not these"):
        ask(args, "small_pope", pope, **options)
    second, _ = ask(model_args(str(run)), "small_pope", pope, **options)
    (new,) = set((run / "lmms").iterdir()) - set(asked)
    fresh = [row["answer"] or "" for row in read_rows(new)]
    assert answers(second, "small_pope") == fresh != answers(first, "small_pope")


def test_several_images_of_a_question_reach_the_model(run, folder):
    some = shapes(QUESTIONS)[:2]
    images = [row.load_image() for row in some]
    row = {"question_id": "0", "question": some[0].question, "answer": "yes", "images": images}
    two = declare(folder / "two", "two_images", [row], f"{POPE}_process_results", POPE_METRICS)
    _, (found,) = ask(model_args(str(run)), "two_images", two)
    backend = open_backend(Writer.recipe, run / "adapter")
    prompt = Request(tuple(images), backend.spec.prompts.render(row["question"]))
    assert found["images"] == 2
    assert found["completion"] == backend.generate([prompt], max_new_tokens=96)[0].text


def test_what_a_task_wants_and_does_not_get_is_said_once(run, pope):
    said = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    _, rows = ask(model_args(str(run), max_new_tokens=20), "small_pope", pope)
    logger.remove(sink)
    assert max(row["tokens"] for row in rows) == 20
    assert len([text for text in said if "allow 16 new tokens" in text and "stops at 20" in text]) == 1
    missing = sum(row["answer"] is None for row in rows)
    assert missing > 0
    assert len([text for text in said if f"{missing} of {len(rows)} completions have no answer" in text]) == 1


def test_the_base_asked_directly_needs_no_tag(run, pope):
    result, rows = ask(model_args(str(run), "direct"), "small_pope", pope)
    assert all(row["answer"] and "<answer>" not in row["completion"] for row in rows)
    assert answers(result, "small_pope") == [row["answer"] for row in rows]


def test_likelihoods_are_refused(run, folder):
    from lmms_eval.api.instance import Instance

    from grit_lite.lmms.model import GritLite

    pairs = (pair.split("=") for pair in model_args(str(run)).split(","))
    model = GritLite(**dict(pairs), completions=str(folder / "none.jsonl"))
    metadata = {"task": "seedbench_ppl", "doc_id": 0, "repeats": 1}
    requests = [Instance("loglikelihood", ("", ""), 0, metadata)]
    with pytest.raises(UsageError, match="seedbench_ppl asks for likelihoods"):
        model.loglikelihood(requests)
    with pytest.raises(UsageError, match="several rounds"):
        model.generate_until_multi_round(requests)
