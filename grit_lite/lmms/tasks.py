"""A benchmark of ours as a task folder for lmms-eval: the questions in a file, and what it needs to know of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grit_lite.errors import UsageError
from grit_lite.evaluate.question import Question

TEMPLATES = Path(__file__).parent / "task"


def export_task(questions: Sequence[Question], folder: Path, benchmark: str) -> str:
    """Write `folder` with the task grit_lite_<benchmark>, and return the task's name.

    Raises:
        UsageError: the folder is there and holds something, or a question cannot be scored by rule.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty, and grit-lite never writes over results. Name another folder.")
    if other := {question.scorer for question in questions} - {"rule"}:
        raise UsageError(f"{benchmark} is scored by {', '.join(sorted(other))}; only benchmarks scored by rule can go.")
    folder.mkdir(parents=True, exist_ok=True)
    task = f"grit_lite_{benchmark}"
    data = folder.resolve() / f"{benchmark}.parquet"
    _write_questions(questions, data)
    names = {"{task}": task, "{name}": benchmark, "{data}": json.dumps(str(data)), "{folder}": str(folder)}
    _fill(TEMPLATES / "task.yaml", folder / f"{task}.yaml", names)
    _fill(TEMPLATES / "README.md", folder / "README.md", names)
    shutil.copy(TEMPLATES / "utils.py", folder)
    return task


def _fill(template: Path, target: Path, names: dict[str, str]) -> None:
    text = template.read_text(encoding="utf-8")
    for name, value in names.items():
        text = text.replace(name, value)
    target.write_text(text, encoding="utf-8")


def _write_questions(questions: Sequence[Question], path: Path) -> None:
    import datasets

    features = datasets.Features(
        id=datasets.Value("string"),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        images=datasets.List(datasets.Image()),
        dataset=datasets.Value("string"),
        cluster=datasets.Value("string"),
    )
    datasets.Dataset.from_list([_row(question) for question in questions], features).to_parquet(path)


def _row(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.text,
        "answer": question.gold,
        "images": question.load_images(),
        "dataset": question.dataset,
        "cluster": question.cluster or question.id,
    }
