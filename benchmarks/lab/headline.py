"""The table of the README: the untrained model, asked in three ways, beside the default arm."""

from benchmarks.lab.analysis import KINDS, Results
from benchmarks.lab.measuring import SAMPLED
from benchmarks.lab.study import DEFAULT, Study
from benchmarks.lab.tables import Tables
from benchmarks.lab.wording import markdown

BEGIN, END = "<!-- python -m benchmarks.lab page -->", "<!-- until here -->"
_ASKED = {
    "untrained/direct": "base, asked directly",
    "untrained/grounded": "base, GRIT prompt",
    "untrained/one-shot-image": "base, behind a worked example",
}
_KINDS = {
    "relation": "relation (left of, right of, above, below)",
    "count": "counting",
    "attribute": "attribute, never trained on",
    "existence": "existence, never trained on",
}
_WITH_OTHER_BOXES = {"wrong_boxes": "moved elsewhere", "swapped_boxes": "exchanged"}


def with_headline(readme: str, found: Results, study: Study) -> str:
    """The README with this table between its two marks, if it has them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{headline(found, study)}\n{end}{after}" if begin and end else readme


def headline(found: Results, study: Study) -> str:
    """Greedy answers; the base's count without tags, too."""
    tables, lines = Tables(found, study), []
    for kind, text in _KINDS.items():
        asked = [f"{tables.share(arm, kind, 'correct_lenient')} %" for arm in _ASKED]
        lines.append([text, *asked, f"**{tables.share(DEFAULT, kind)} %**", f"{tables.seeds(DEFAULT, kind)} %"])
        if kind in ("relation", "count"):
            lines.append(["· above the base at its best", *[""] * len(_ASKED), f"{tables.gain(kind)} points", ""])
    lines.append(["valid format", *_cells(found, "valid_format", KINDS, "{:.1%}")])
    lines.append(["valid format of samples at temperature 1", *_cells(found, "valid_format", tuple(SAMPLED), "{:.1%}")])
    lines.append(["union IoU of the reasoning's boxes", *_cells(found, "iou", KINDS, "{:.2f}")])
    for condition, text in _WITH_OTHER_BOXES.items():
        after = f"{tables.faithful_share(DEFAULT, condition)} %"
        lines.append([f"relation with the chain's boxes {text}", *[""] * len(_ASKED), after, ""])
    tuned = f"**tuned**, mean of {len(found.rows[DEFAULT])} seeds"
    return markdown(["", *_ASKED.values(), tuned, "worst … best seed"], lines)


def _cells(found: Results, measure: str, sets: tuple[str, ...], form: str) -> list[str]:
    """Of the arms that are asked for boxes: all but the direct one, and the default."""
    values = [found.values(arm, measure, sets).mean for arm in (*list(_ASKED)[1:], DEFAULT)]
    return ["", *(form.format(value).replace("%", " %") for value in values), ""]
