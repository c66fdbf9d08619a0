"""An evaluation as the report shows it: its table, what guessing would score, what it finds, and examples."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grit_lite.pages import faithfulness
from grit_lite.pages.cases import together
from grit_lite.pages.faithfulness import sentences
from grit_lite.pages.outcomes import OUTCOMES, examples, held_against, outcome
from grit_lite.pages.table import SYSTEMS, datasets, difference, lines, p_of, pair
from grit_lite.pages.wording import number, percent
from grit_lite.report.completions import shown
from grit_lite.run import read_rows

Row = Mapping[str, Any]

EXAMPLES = 24  # the gallery beside the rows shows all of them


def benchmark(path: Path) -> dict[str, Any]:
    """An evaluation's summary and its examples: every system's row of a few questions whose image was kept."""
    result = json.loads(path.read_text(encoding="utf-8"))
    cases = list(together(read_rows(path.with_suffix(".jsonl"))).values())
    with_picture = [case for case in cases if any("image" in row for row in case.values())]
    kept = [with_picture[index] for index in sorted(examples(list(map(outcome, with_picture)), EXAMPLES))]
    kept.sort(key=lambda case: OUTCOMES.index(outcome(case)))
    return {
        **result,
        "asked": len(cases),
        "against": SYSTEMS.get(name := list(result["systems"])[held_against(list(result["systems"]))], name),
        "lines": lines(result),
        "faithfulness": _faithfulness(path, result),
        "findings": findings(result),
        "guess": {name: _most_common(cases, name) for name in datasets(result)},
        "outcomes": Counter(outcome(case) for case in cases),
        "gallery": f"eval/{path.stem}.html" if path.with_suffix(".html").is_file() else None,
        "examples": [(outcome(case), {k: shown(row, path.parent) for k, row in case.items()}) for case in kept],
    }


def _faithfulness(path: Path, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was asked of faithfulness beside an evaluation; None where it was not, or of another adapter."""
    beside = path.parent / "faithfulness" / path.name
    if not beside.is_file():
        return None
    found = json.loads(beside.read_text(encoding="utf-8"))
    system = found["system"]
    asked = result["settings"].get("systems", {}).get(system, {})
    if any(asked.get(name) != found["settings"][name] for name in ("weights", "adapter")):
        return None
    return {"system": SYSTEMS.get(system, system), "lines": faithfulness.lines(found), "sentences": sentences(found)}


def _most_common(cases: Sequence[Mapping[str, Row]], dataset: str) -> float:
    """The share of right answers of someone who always gives the most common one, without looking."""
    golds = Counter(
        row["gold"] for row in (next(iter(case.values())) for case in cases) if dataset in ("all", row["dataset"])
    )
    return max(golds.values(), default=0) / max(golds.total(), 1)


_VERDICTS = {
    "better": "so tuning is shown to help the answers",
    "worse": "so tuning is shown to harm the answers",
    "": "so no difference is shown",
}


def findings(result: Mapping[str, Any]) -> list[str]:
    """What the evaluation says of format, boxes and answers, a sentence each; nothing where a system is missing."""
    systems = result["systems"]
    if not {"base_direct", "base", "tuned"} <= systems.keys():
        return []
    direct, base, tuned = (systems[name] for name in ("base_direct", "base", "tuned"))
    form = [percent(system["valid_format"]["value"]) for system in (tuned, base)]
    overlap = [number(system["union_iou"]["value"]) for system in (tuned, base)]
    right = [percent(system["accuracy"]["all"]["value"]) for system in (tuned, direct)]
    row = pair(result, "accuracy", "all", "base_direct")
    gap = difference(row, "accuracy")
    form_said = (
        f"On {result['n']} held-out questions, {form[0]} % of the tuned model’s completions have the full format; "
        f"under the same prompt the base reaches {form[1]} %."
    )
    boxes_said = f"The boxes of its reasoning overlap the evidence by a union IoU of {overlap[0]} (base: {overlap[1]})."
    answers_said = (
        f"It answers {right[0]} % right, the base asked directly {right[1]} %: {gap.value} points, "
        f"95 % interval {gap.interval}, {p_of(row)}, {_VERDICTS[gap.verdict]}."
    )
    return [form_said, boxes_said, answers_said]
