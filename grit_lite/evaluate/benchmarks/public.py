"""The public benchmarks: those of GRIT's public page, and others that ask for places, counts and parts of an image.

Revisions are commits that were seen on the hub's own pages; "main" where none was. A prompt ends with the hint that the
benchmark's authors, or the tools that report it, give. None of the data comes with grit-lite.
"""

from typing import Any

from grit_lite.evaluate.benchmarks.benchmark import Benchmark, Join, Row, xywh
from grit_lite.triplets import fetch

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "{question}\nAnswer the question using a single word or phrase."
COUNT = "{question}\nAnswer with a single number."


def letter(row: Row) -> str:
    """The letter of an answer such as "(A)" or "b."."""
    return str(row["answer"]).strip(" ().").upper()


def lettered(question: str, choices: list[str]) -> str:
    """A question with its choices, a letter and a line for each."""
    lines = [f"{chr(ord('A') + place)}. {choice}" for place, choice in enumerate(choices)]
    return "\n".join([question, *lines, LETTER])


def open_or_closed(row: Row) -> str:
    """How medical sets report: closed questions are those whose answer is yes or no."""
    return "closed" if str(row["answer"]).strip().lower() in {"yes", "no"} else "open"


# yes or no

# Whoever answers in sentences scores otherwise by the authors' script. Taking every other text for yes pays one that
# says nothing; and "no" or "not" anywhere is no in "Yes, it is not hidden."
_POPE_NOTE = (
    'the authors take a first sentence with "no" or "not" for no and any other text for yes; here an answer has to '
    "say yes or no, and one that says neither is wrong."
)
_POPE_COLUMNS = ("question", "answer", "image_source", "image")


def _pope(split: str) -> Benchmark:
    return Benchmark(
        name=f"pope-{split}",
        hub="lmms-lab-encoder/POPE",
        revision="4db1276663dfa5eb8ad16a52d24c31a09e470896",
        split=split,
        configurations=("Full",),
        table="{configuration}/{split}-*",
        rows=3000,
        columns=_POPE_COLUMNS,
        prompt=PHRASE,
        gold="{answer}",
        cluster="{image_source}",
        scorer="yes_no",
        aggregates=("pope",),
        licence="not stated; images: COCO",
        note=_POPE_NOTE,
        schema="the card of a derivative with the same columns; lmms-eval's pope task, which reads this dataset",
        verified=True,
    )


POPE = tuple(_pope(split) for split in ("adversarial", "popular", "random"))

MME = Benchmark(
    name="mme",
    hub="lmms-lab-encoder/MME",
    revision="d6c9023f017b564f7b3ccccf5348166bce8fdbcd",
    split="test",
    rows=2374,
    columns=("question_id", "image", "question", "answer", "category"),
    prompt="{question}",  # ends in " Please answer yes or no."
    gold="{answer}",
    part="{category}",
    facts=lambda row: {"pair": f"{row['category']}/{row['question_id']}"},
    scorer="yes_no",
    aggregates=("mme",),
    licence="not stated",
    schema="the dataset's card; that question_id is shared by the two questions of an image: lmms-eval's mme task",
    verified=True,
)

VSR = Benchmark(
    name="vsr",
    hub="cambridgeltl/vsr_zeroshot",
    revision="148b3777ceef4a1bfe46377614980836db7d12f2",
    split="test",
    table="{split}.jsonl",
    rows=1222,
    columns=("image", "caption", "label", "relation"),
    image=(),
    image_file="{image}",
    images_in="images",
    image_address=lambda row: fetch.SOURCES.addresses("vsr", row["image"]),
    prompt='Is this statement about the image true? "{caption}" Please answer yes or no.',
    gold=lambda row: "yes" if row["label"] in (1, "1") else "no",
    scorer="yes_no",
    licence="CC-BY-4.0; images: COCO",
    schema="the rows of the same file in the authors' repository; images are files of COCO 2017",
    verified=True,
)

# numbers

TALLYQA = Benchmark(
    name="tallyqa",
    hub="vikhyatk/tallyqa-test",
    revision="2636200d9845bf54d545ed9e66b2957532c5bf13",
    split="test",
    rows=38589,
    columns=("image", "qa"),
    each="qa",
    prompt=COUNT,
    gold="{answer}",
    part=lambda row: "simple" if row["is_simple"] else "complex",
    scorer="number",
    licence="not stated; images: COCO, VG",
    schema="public code that reads this dataset: a list of question, answer and is_simple in the column qa",
    verified=True,
)

COUNTBENCH = Benchmark(
    name="countbenchqa",
    hub="vikhyatk/CountBenchQA",
    revision="76d600309e9d6147bd3713b4cd431518ac1206c8",
    split="test",
    rows=491,
    columns=("image", "question", "number"),  # not the caption in "text": it names the count
    prompt=COUNT,
    gold="{number}",
    scorer="number",
    licence="not stated; images: LAION-400M",
    schema="the dataset's card",
    verified=True,
)

# letters

REALWORLDQA = Benchmark(
    name="realworldqa",
    hub="xai-org/RealworldQA",
    revision="17e7f75e092e47169732462ea3cdfebe911105dd",
    split="test",
    rows=765,
    columns=("image", "question", "answer"),
    prompt="{question}",  # with choices and hint
    gold="{answer}",
    licence="CC-BY-ND-4.0",
    schema="the cards of copies of it; lmms-eval's realworldqa task, which reads a copy",
    verified=True,
)

MMSTAR = Benchmark(
    name="mmstar",
    hub="Lin-Chen/MMStar",
    revision="bc98d668301da7b14f648724866e57302778ab27",
    split="val",
    table="mmstar.parquet",
    rows=1500,
    columns=("question", "image", "answer", "category", "l2_category"),
    prompt=f"{{question}}\n{LETTER}",  # the question has the choices
    gold="{answer}",
    part="{category}",
    scorer="choice",
    licence="not stated",
    schema="the dataset's card",
    verified=True,
)

_BLINK_TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)

BLINK = Benchmark(
    name="blink",
    hub="BLINK-Benchmark/BLINK",
    revision="cbb5717ea541ba92bbf9a63b99972493a1a133b8",
    split="val",  # the answers of "test" are not public
    configurations=_BLINK_TASKS,
    table="{configuration}/{split}-*",
    rows=1901,
    columns=("prompt", "choices", "answer", "image_1"),
    image=("image_1",),
    optional=("image_2", "image_3", "image_4"),
    prompt=f"{{prompt}}\n{LETTER}",
    gold=letter,
    part="{configuration}",
    facts=lambda row: {"choices": list(row["choices"])},
    scorer="choice",
    licence="Apache-2.0",
    schema="the dataset's card for one task; lmms-eval's blink tasks, which read this dataset",
    verified=True,
)

VSTAR = Benchmark(
    name="vstar",
    hub="craigwu/vstar_bench",
    revision="d9ae62c903da0c98336e85c5ee89cd863b04b4da",
    split="test",
    table="test_questions.jsonl",
    also=("direct_attributes/*", "relative_position/*"),
    rows=191,
    columns=("image", "text", "category", "label"),
    image=(),
    image_file="{image}",
    beside=("bbox",),
    prompt="{text}",  # with choices and hint
    gold="{label}",
    boxes=xywh("bbox"),
    part="{category}",
    scorer="choice",
    licence="not stated",
    schema="public code that reads this dataset, and one of its annotations: bbox is a list of [x, y, width, height]",
    verified=True,
)


def _hr_bench(size: str) -> Benchmark:
    choices = ("A", "B", "C", "D")
    return Benchmark(
        name=f"hr-bench-{size}",
        hub="DreamMr/HR-Bench",
        split=f"hrbench_{size}",
        table=f"hr_bench_{size}.parquet",
        rows=800,
        columns=("image", "question", "answer", *choices, "category"),
        image_text=True,
        prompt=lambda row: lettered(row["question"], [row[name] for name in choices]),
        gold="{answer}",
        part="{category}",
        facts=lambda row: {"choices": [row[name] for name in choices]},
        scorer="choice",
        licence="other, not stated which",
        schema="the card of a copy of it; lmms-eval's hrbench tasks, which read this dataset",
        verified=True,
    )


HR_BENCH = tuple(_hr_bench(size) for size in ("4k", "8k"))


def _mmvp_choices(row: Row) -> list[str]:
    """The choices of "(a) Open (b) Closed"."""
    return [choice.strip() for choice in str(row["Options"]).replace("(b)", "(a)").split("(a)")[1:]]


MMVP = Benchmark(
    name="mmvp",
    hub="lmms-lab-eval/MMVP",
    split="train",
    rows=300,
    columns=("Index", "Question", "Options", "Correct Answer", "image"),
    prompt=lambda row: lettered(row["Question"], _mmvp_choices(row)),
    gold=lambda row: str(row["Correct Answer"]).strip(" ().").upper(),
    cluster=lambda row: f"pair {(int(row['Index']) - 1) // 2}",
    facts=lambda row: {"pair": f"{(int(row['Index']) - 1) // 2}", "choices": _mmvp_choices(row)},
    scorer="choice",
    aggregates=("pairs",),
    licence="not stated",
    schema="lmms-eval's mmvp task accepts these names or lower-case ones",
    verified=False,
)

CV_BENCH = Benchmark(
    name="cv-bench",
    hub="nyu-visionx/CV-Bench",
    split="test",
    configurations=("2d", "3d"),
    table="{split}_{configuration}.parquet",
    rows=2638,
    columns=("image", "choices", "answer", "prompt", "source"),
    prompt=f"{{prompt}}\n{LETTER}",
    gold=letter,
    part="{source}",
    facts=lambda row: {"choices": list(row["choices"])},
    scorer="choice",
    aggregates=("cv_bench",),
    licence="Apache-2.0",
    schema="lmms-eval's cv_bench tasks, which read this dataset; the names of its files: the hub's page",
    verified=True,
)

_SEED_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")

SEED = Benchmark(
    name="seed-image",
    hub="lmms-lab-encoder/SEED-Bench",
    split="test",
    rows=14233,
    columns=("image", "question", *_SEED_CHOICES, "answer", "data_type"),
    keep=lambda row: row["data_type"] == "image",
    prompt=lambda row: lettered(row["question"], [row[name] for name in _SEED_CHOICES]),
    gold="{answer}",
    facts=lambda row: {"choices": [row[name] for name in _SEED_CHOICES]},
    scorer="choice",
    licence="CC-BY-NC-4.0",
    schema="lmms-eval's seedbench task, which reads this dataset; the card of its successor",
    verified=True,
)

# words, and what calls for a rule of its own

GQA = Benchmark(
    name="gqa",
    hub="lmms-lab-encoder/GQA",
    revision="78e9ec37481de666feb0180c7b5a773741cb47ca",
    split="testdev",
    configurations=("testdev_balanced_instructions",),
    table="{configuration}/{split}-*",
    rows=12578,
    columns=("id", "imageId", "question", "answer"),
    join=Join("testdev_balanced_images", "{configuration}/{split}-*", key="imageId", on="id"),
    prompt=PHRASE,
    gold="{answer}",
    cluster="{imageId}",
    scorer="exact",
    licence="MIT; images: VG",
    schema="the dataset's card; that answers are in the column answer: lmms-eval's gqa task, which reads this dataset",
    verified=True,
)

SLAKE = Benchmark(
    name="slake",
    hub="BoKelvin/SLAKE",
    revision="b2eb8c58556c5ceefe7b9203d3ad17ce0693d193",
    split="test",
    table="{split}.json",
    also=("imgs.zip",),
    rows=1061,
    columns=("img_name", "question", "answer", "q_lang", "answer_type", "modality"),
    keep=lambda row: row["q_lang"] == "en",
    image=(),
    image_file="{img_name}",
    images_in="imgs.zip",
    prompt=PHRASE,
    gold="{answer}",
    part=lambda row: str(row["answer_type"]).strip().lower(),
    scorer="slake",
    licence="CC-BY-4.0",
    schema="the card of a part of it; lmms-eval's slake tasks, which read this dataset",
    verified=True,
)


def _medical(name: str, hub: str, rows: int, licence: str, revision: str = "main") -> Benchmark:
    return Benchmark(
        name=name,
        hub=hub,
        revision=revision,
        split="test",
        rows=rows,
        columns=("image", "question", "answer"),
        prompt=PHRASE,
        gold="{answer}",
        part=open_or_closed,
        licence=licence,
        schema="the dataset's card",
        verified=True,
    )


VQA_RAD = _medical("vqa-rad", "flaviagiammarino/vqa-rad", 451, "CC0-1.0")
PATH_VQA = _medical("path-vqa", "flaviagiammarino/path-vqa", 6719, "MIT", "12d11bc4ecfb8779899e7b8e95105b7812b63469")

CHARTQA = Benchmark(
    name="chartqa",
    hub="lmms-lab-encoder/ChartQA",
    revision="9e63b7df1592a1c2158e735cc1725454aef0d6d9",
    split="test",
    rows=2500,
    columns=("type", "question", "answer", "image"),
    prompt=PHRASE,
    gold="{answer}",
    part="{type}",
    scorer="relaxed",
    licence="GPL-3.0",
    schema="lmms-eval's chartqa task, which reads this dataset; the card of a part of it",
    verified=True,
)


def _mathvista_facts(row: Row) -> dict[str, Any]:
    names = ("question_type", "answer_type", "precision", "unit")
    return {"choices": list(row["choices"] or ()), **{name: row[name] for name in names}}


MATHVISTA = Benchmark(
    name="mathvista",
    hub="AI4Math/MathVista",
    revision="2b6ad69445fbb5695c9b165475e8decdbeb97747",
    split="testmini",
    rows=1000,
    columns=(
        *("decoded_image", "choices", "unit", "precision", "answer"),
        *("question_type", "answer_type", "query", "metadata"),
    ),
    image=("decoded_image",),
    prompt="{query}",  # the question with its unit, its choices and the hint for its type of answer
    gold="{answer}",
    part=lambda row: row["metadata"]["task"],
    facts=_mathvista_facts,
    scorer="mathvista",
    licence="CC-BY-SA-4.0",
    schema="the dataset's card",
    verified=True,
)

MMHAL = Benchmark(
    name="mmhal",
    hub="Shengcao1006/MMHal-Bench",
    revision="f5f49a938f45ed99e235b8519ba28f76832a2add",
    split="test",
    table="response_template.json",
    also=("images/*",),
    rows=96,
    columns=("question_type", "question_topic", "image_src", "image_content", "question", "gt_answer"),
    image=(),
    image_file=lambda row: str(row["image_src"]).rpartition("/")[2],
    images_in="images",
    prompt="{question}",
    gold=lambda row: str(row["gt_answer"]).replace("|", "/"),
    part="{question_type}",
    facts=lambda row: {"rubric": "mmhal", "contents": list(row["image_content"])},
    scorer="judge",
    aggregates=("mmhal",),
    licence="Apache-2.0",
    schema="the card of a copy of it; the dataset's own loading script, and public code that reads its files",
    verified=True,
)

# boxes


# Expressions, as published for the splits of UNC and, of RefCOCOg, of UMD: each is a question. Two of the files hold
# another split as well, and no column tells one from the other: how many questions they make is not known.
_MIXED = {
    "refcoco-val": "the 3,811 objects of UNC's split, which is the one that is reported, and 5,000 of Google's",
    "refcocog-val": "the 2,573 objects of UMD's split, which is the one that is reported, and 5,000 of Google's",
}


def _refcoco(name: str, hub: str, split: str, rows: int, revision: str) -> Benchmark:
    mixed = _MIXED.get(f"{name}-{split}")
    return Benchmark(
        name=f"{name}-{split.lower()}",
        hub=hub,
        revision=revision,
        split=split,
        rows=rows,
        columns=("image", "answer", "bbox", "file_name"),
        each="answer",
        prompt='Which object is this: "{answer}"? Answer with its bounding box.',
        gold="",
        boxes=xywh("bbox"),
        scorer="box",
        licence="not stated; images: COCO",
        note=f"its file holds two splits together, {mixed}: hold its numbers against no published one."
        if mixed
        else "",
        schema="the dataset's card: answer is the list of expressions, bbox is [x, y, width, height] in pixels",
        verified=True,
    )


_REFCOCO = ("lmms-lab-encoder/RefCOCO", "a5dff0b3194715fda69b2d6a0d2aaafb41eaa407")
_REFCOCO_PLUS = ("lmms-lab-encoder/RefCOCOplus", "a283082593c437efc2bb9876d43bc3075cd914fe")
_REFCOCO_G = ("lmms-lab-encoder/RefCOCOg", "main")

REFCOCO = tuple(
    _refcoco(name, hub, split, rows, revision)
    for name, (hub, revision), splits in (
        ("refcoco", _REFCOCO, {"val": 0, "testA": 5657, "testB": 5095}),
        ("refcoco-plus", _REFCOCO_PLUS, {"val": 10758, "testA": 5726, "testB": 4889}),
        ("refcocog", _REFCOCO_G, {"val": 0, "test": 9602}),
    )
    for split, rows in splits.items()
)

PUBLIC = (
    *(GQA, *POPE, MATHVISTA, MMHAL, REALWORLDQA, MMSTAR, BLINK, SLAKE),
    *(VSR, TALLYQA, MME, *REFCOCO, COUNTBENCH, VSTAR),
    *(*HR_BENCH, MMVP, CV_BENCH, CHARTQA, SEED, VQA_RAD, PATH_VQA),
)
