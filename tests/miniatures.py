"""Every benchmark in miniature: rows of our own making in exactly the schema and under the file names of the hub.

`MINIATURES[name]` writes a few rows into a folder, as a copy of the hub's dataset has them, and gives what each
question has to be. Pictures are told apart by their colour.
"""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

LETTER = "\nAnswer with the option's letter from the given choices directly."
PHRASE = "\nAnswer the question using a single word or phrase."
COUNT = "\nAnswer with a single number."
TEXT, NUMBER, FLAG = Value("string"), Value("int64"), Value("bool")
RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)
SIZE = (60, 40)


@dataclass
class Expected:
    """A question: its text, its gold answer, the part that it is reported under, the colours of its images."""

    text: str
    gold: str
    dataset: str
    colours: Sequence[tuple[int, int, int]]
    boxes: Sequence[tuple[float, ...]] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    cluster: str | None = None  # where it is not that of the image


Write = Callable[[Path], list[Expected]]
MINIATURES: dict[str, Write] = {}


def miniature(*names: str) -> Callable[[Callable[..., list[Expected]]], Callable[..., list[Expected]]]:
    """Registers a miniature; one of several names is given its own."""

    def register(write: Callable[..., list[Expected]]) -> Callable[..., list[Expected]]:
        for name in names:
            MINIATURES[name] = write if len(names) == 1 else lambda folder, name=name: write(folder, name)
        return write

    return register


def picture(colour: tuple[int, int, int], size: tuple[int, int] = SIZE) -> Pictures.Image:
    return Pictures.new("RGB", size, colour)


def encoded(colour: tuple[int, int, int], form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    picture(colour).save(stream, form)
    return stream.getvalue()


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def parquet(path: Path, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(path)


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


# yes or no


@miniature("pope-adversarial", "pope-popular", "pope-random")
def pope(folder: Path, name: str) -> list[Expected]:
    split = name.removeprefix("pope-")
    features = dict.fromkeys(("id", "question_id", "question", "answer", "image_source"), TEXT)
    rows = [
        {"id": "0", "question_id": "1", "question": "Is there a cat in the image?", "answer": "yes"},
        {"id": "1", "question_id": "2", "question": "Is there a car in the image?", "answer": "no"},
    ]
    more = {"image_source": "COCO_val2014_000000000001", "image": picture(RED), "category": split}
    for other in ("adversarial", "popular", "random"):  # only one of the three is to be read
        wrong = {"question": "Is it of another split?"} if other != split else {}
        parquet(
            folder / f"Full/{other}-00000-of-00001.parquet",
            {**features, "image": Image(), "category": TEXT},
            [row | more | wrong for row in rows],
        )
    return [
        Expected(row["question"] + PHRASE, row["answer"], name, [RED], cluster="COCO_val2014_000000000001")
        for row in rows
    ]


@miniature("mme")
def mme(folder: Path) -> list[Expected]:
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": TEXT, "category": TEXT}
    key = {"question_id": "count/000000000002.jpg", "image": picture(BLUE), "category": "count"}
    rows = [
        {**key, "question": "Are there two dogs in this image? Please answer yes or no.", "answer": "Yes"},
        {**key, "question": "Are there three dogs in this image? Please answer yes or no.", "answer": "No"},
    ]
    parquet(folder / "data/test-00000-of-00004-a25dbe3b44c4fda6.parquet", features, rows)
    pair = {"pair": "count/count/000000000002.jpg"}
    return [Expected(row["question"], row["answer"], "count", [BLUE], facts=pair) for row in rows]


@miniature("vsr")
def vsr(folder: Path) -> list[Expected]:
    row = {
        "image": "000000017697.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000017697.jpg",
        "caption": "The car is behind the suitcase.",
        "label": 1,
        "relation": "behind",
        "subj": "car",
        "obj": "suitcase",
        "annotator_id": 2,
        "vote_true_validator_id": "[18, 2]",
        "vote_false_validator_id": "[1]",
    }
    json_lines(folder / "test.jsonl", [row, row | {"label": 0, "caption": "The car is on the suitcase."}])
    write_file(folder / "images/000000017697.jpg", encoded(RED))
    asked = 'Is this statement about the image true? "The car is {} the suitcase." Please answer yes or no.'
    return [
        Expected(asked.format("behind"), "yes", "vsr", [RED]),
        Expected(asked.format("on"), "no", "vsr", [RED]),
    ]


# numbers


@miniature("tallyqa")
def tallyqa(folder: Path) -> list[Expected]:
    qa = {"question": TEXT, "answer": TEXT, "is_simple": FLAG, "data_source": TEXT}
    asked = [
        {"question": "How many dogs are there?", "answer": "2", "is_simple": True, "data_source": "vqa2"},
        {"question": "How many dogs run left?", "answer": "1", "is_simple": False, "data_source": "amt"},
    ]
    rows = [{"image": picture(RED), "qa": asked}, {"image": picture(GREEN), "qa": asked[:1]}]
    parquet(folder / "data/test-00000-of-00019.parquet", {"image": Image(), "qa": List(qa)}, rows)
    return [
        Expected(asked[0]["question"] + COUNT, "2", "simple", [RED]),
        Expected(asked[1]["question"] + COUNT, "1", "complex", [RED]),
        Expected(asked[0]["question"] + COUNT, "2", "simple", [GREEN]),
    ]


@miniature("countbenchqa")
def countbenchqa(folder: Path) -> list[Expected]:
    features = {"image": Image(), "text": TEXT, "question": TEXT, "number": Value("int32")}
    row = {"image": picture(RED), "text": "A set of five vases", "question": "How many vases are there?", "number": 5}
    parquet(folder / "data/test-00000-of-00001.parquet", features, [row])
    return [Expected("How many vases are there?" + COUNT, "5", "countbenchqa", [RED])]


# letters


@miniature("realworldqa")
def realworldqa(folder: Path) -> list[Expected]:
    features = {"image": Image(), "question": TEXT, "answer": TEXT}
    rows = [
        {"image": picture(RED), "question": "Which way? A. Left B. Right\nAnswer with the letter.", "answer": "B"},
        {"image": picture(BLUE), "question": "How many cars? Answer with one number.", "answer": "3"},
    ]
    parquet(folder / "data/test-00000-of-00002.parquet", features, rows[:1])
    parquet(folder / "data/test-00001-of-00002.parquet", features, rows[1:])
    return [
        Expected(row["question"], row["answer"], "realworldqa", [colour])
        for row, colour in zip(rows, (RED, BLUE), strict=True)
    ]


@miniature("mmstar")
def mmstar(folder: Path) -> list[Expected]:
    meta = {"source": TEXT, "split": TEXT, "image_path": TEXT}
    features = {"index": NUMBER, "question": TEXT, "image": Image(), "answer": TEXT, "category": TEXT}
    asked = "Which colour dominates?\nOptions: A: red, B: green, C: blue, D: grey"
    row = {
        "index": 0,
        "question": asked,
        "image": picture(GREEN),
        "answer": "B",
        "category": "coarse perception",
        "l2_category": "image style & quality",
        "meta_info": {"source": "ours", "split": "val", "image_path": "images/0.jpg"},
    }
    parquet(folder / "mmstar.parquet", {**features, "l2_category": TEXT, "meta_info": meta}, [row])
    write_file(folder / "MMStar.tsv", b"index\n0\n")
    return [Expected(asked + LETTER, "B", "coarse perception", [GREEN])]


BLINK_TASKS = (
    *("Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test", "Jigsaw"),
    *("Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Relative_Reflectance"),
    *("Semantic_Correspondence", "Spatial_Relation", "Visual_Correspondence", "Visual_Similarity"),
)


@miniature("blink")
def blink(folder: Path) -> list[Expected]:
    images = [f"image_{place}" for place in range(1, 5)]
    features = {"idx": TEXT, "question": TEXT, "sub_task": TEXT, **dict.fromkeys(images, Image())}
    features |= {"choices": List(TEXT), **dict.fromkeys(("answer", "prompt", "explanation"), TEXT)}
    for task in BLINK_TASKS:
        colours = [RED, GREEN, BLUE] if task == "Art_Style" else [RED]
        pictures = {name: picture(colour) for name, colour in zip(images, colours, strict=False)}
        row = dict.fromkeys(images) | pictures
        row |= {"idx": f"val_{task}_1", "question": "Which?", "sub_task": task, "explanation": ""}
        row |= {
            "choices": ["the second", "the third"],
            "answer": "(B)",
            "prompt": f"{task}?\n(A) the second\n(B) the third",
        }
        parquet(folder / f"{task}/val-00000-of-00001.parquet", features, [row])
        parquet(folder / f"{task}/test-00000-of-00001.parquet", features, [row | {"answer": "hidden"}])
    return [
        Expected(
            f"{task}?\n(A) the second\n(B) the third" + LETTER,
            "B",
            task,
            [RED, GREEN, BLUE] if task == "Art_Style" else [RED],
            facts={"choices": ["the second", "the third"]},
        )
        for task in BLINK_TASKS
    ]


@miniature("vstar")
def vstar(folder: Path) -> list[Expected]:
    asked = f"What is the colour of the glove?\n(A) red\n(B) green{LETTER}"
    row = {"image": "direct_attributes/sa_4690.jpg", "text": asked, "category": "direct_attributes", "label": "A"}
    json_lines(folder / "test_questions.jsonl", [row | {"question_id": "0"}])
    write_file(folder / "direct_attributes/sa_4690.jpg", encoded(RED))
    annotation = {"target_object": ["glove"], "bbox": [[5, 6, 20, 10]], "question": "?", "options": ["red", "green"]}
    write_file(folder / "direct_attributes/sa_4690.json", json.dumps(annotation).encode())
    return [Expected(asked, "A", "direct_attributes", [RED], boxes=[(5, 6, 25, 16)])]


@miniature("hr-bench-4k", "hr-bench-8k")
def hr_bench(folder: Path, name: str) -> list[Expected]:
    names = ("question", "answer", "category", "A", "B", "C", "D", "cycle_category", "image")
    row = {"index": 0, "question": "What is on the sign?", "answer": "C", "category": "single", "cycle_category": "0"}
    row |= {"A": "5", "B": "6", "C": "7", "D": "8", "image": base64.b64encode(encoded(BLUE)).decode()}
    file = folder / f"hr_bench_{name.removeprefix('hr-bench-')}.parquet"
    parquet(file, {"index": NUMBER, **dict.fromkeys(names, TEXT)}, [row])
    text = "What is on the sign?\nA. 5\nB. 6\nC. 7\nD. 8" + LETTER
    return [Expected(text, "C", "single", [BLUE], facts={"choices": ["5", "6", "7", "8"]})]


@miniature("mmvp")
def mmvp(folder: Path) -> list[Expected]:
    features = {"Index": NUMBER, "Question": TEXT, "Options": TEXT, "Correct Answer": TEXT, "image": Image()}
    row = {"Question": "Is the door open?", "Options": "(a) Open (b) Closed"}
    rows = [
        {"Index": 1, "Correct Answer": "(a)", "image": picture(RED), **row},
        {"Index": 2, "Correct Answer": "(b)", "image": picture(GREEN), **row},
    ]
    parquet(folder / "data/train-00000-of-00001.parquet", features, rows)
    text, facts = "Is the door open?\nA. Open\nB. Closed" + LETTER, {"pair": "0", "choices": ["Open", "Closed"]}
    return [
        Expected(text, "A", "mmvp", [RED], facts=facts, cluster="pair 0"),
        Expected(text, "B", "mmvp", [GREEN], facts=facts, cluster="pair 0"),
    ]


@miniature("cv-bench")
def cv_bench(folder: Path) -> list[Expected]:
    features = {"idx": NUMBER, "image": Image(), "choices": List(TEXT)}
    features |= dict.fromkeys(("type", "task", "question", "answer", "prompt", "source"), TEXT)
    for kind, source, colour in (("2d", "COCO", RED), ("3d", "Omni3D", BLUE)):
        row = {"idx": 0, "image": picture(colour), "choices": ["1", "2"], "type": kind.upper(), "task": "Count"}
        row |= {"question": "How many?", "answer": "(A)", "prompt": "How many?\n(A) 1\n(B) 2", "source": source}
        parquet(folder / f"test_{kind}.parquet", features, [row])
    text, facts = "How many?\n(A) 1\n(B) 2" + LETTER, {"choices": ["1", "2"]}
    return [Expected(text, "A", "COCO", [RED], facts=facts), Expected(text, "A", "Omni3D", [BLUE], facts=facts)]


@miniature("seed-image")
def seed_image(folder: Path) -> list[Expected]:
    names = (
        "answer",
        "choice_a",
        "choice_b",
        "choice_c",
        "choice_d",
        "data_id",
        "data_type",
        "question",
        "question_id",
    )
    features = {**dict.fromkeys(names, TEXT), "question_type_id": Value("int16"), "image": List(Image())}
    row = {"answer": "D", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    row |= {"data_id": "1", "data_type": "image", "question": "How many?", "question_id": "7", "question_type_id": 5}
    video = row | {"data_type": "video", "image": [picture(GREEN), picture(BLUE)]}
    parquet(folder / "data/test-00000-of-00006.parquet", features, [video, row | {"image": [picture(RED)]}])
    text = "How many?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER
    return [Expected(text, "D", "seed-image", [RED], facts={"choices": ["One", "Two", "Three", "Four"]})]


# words


@miniature("gqa")
def gqa(folder: Path) -> list[Expected]:
    names = ("id", "imageId", "question", "answer", "fullAnswer")
    asked = [("202", "n2", "Is the bed made?", "yes"), ("101", "n1", "What is it?", "chair")]
    rows = [
        {"id": key, "imageId": image, "question": question, "answer": answer, "fullAnswer": "", "isBalanced": True}
        for key, image, question, answer in asked
    ]
    questions = folder / "testdev_balanced_instructions/testdev-00000-of-00001.parquet"
    parquet(questions, {**dict.fromkeys(names, TEXT), "isBalanced": FLAG}, rows)
    pictures = [{"id": "n1", "image": picture(GREEN)}, {"id": "n2", "image": picture(BLUE)}]
    images = folder / "testdev_balanced_images/testdev-00000-of-00001.parquet"
    parquet(images, {"id": TEXT, "image": Image()}, pictures)
    return [
        Expected("Is the bed made?" + PHRASE, "yes", "gqa", [BLUE], cluster="n2"),
        Expected("What is it?" + PHRASE, "chair", "gqa", [GREEN], cluster="n1"),
    ]


@miniature("slake")
def slake(folder: Path) -> list[Expected]:
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "What modality is this?", "answer": "MRI"}
    row |= {"q_lang": "en", "location": "Abdomen", "modality": "MRI", "answer_type": "OPEN", "base_type": "vqa"}
    row |= {"content_type": "Modality", "triple": ["vhead", "_", "_"], "qid": 11934}
    other = row | {"q_lang": "zh", "question": "这是什么?", "answer": "磁共振", "qid": 11935}
    closed = row | {"question": "Is this a CT?", "answer": "No", "answer_type": "CLOSED", "qid": 11936}
    write_file(folder / "test.json", json.dumps([row, other, closed], ensure_ascii=False).encode())
    with zipfile.ZipFile(folder / "imgs.zip", "w") as archive:
        archive.writestr("imgs/xmlab1/source.jpg", encoded(RED))
    return [
        Expected("What modality is this?" + PHRASE, "MRI", "open", [RED]),
        Expected("Is this a CT?" + PHRASE, "No", "closed", [RED]),
    ]


@miniature("vqa-rad", "path-vqa")
def medical(folder: Path, name: str) -> list[Expected]:
    features = {"image": Image(), "question": TEXT, "answer": TEXT}
    rows = [
        {"image": picture(RED), "question": "is there a fracture?", "answer": "yes"},
        {"image": picture(RED), "question": "which organ is shown?", "answer": "the liver"},
    ]
    parquet(folder / "data/test-00000-of-00001.parquet", features, rows)
    return [
        Expected("is there a fracture?" + PHRASE, "yes", "closed", [RED]),
        Expected("which organ is shown?" + PHRASE, "the liver", "open", [RED]),
    ]


@miniature("chartqa")
def chartqa(folder: Path) -> list[Expected]:
    features = {"type": TEXT, "question": TEXT, "answer": TEXT, "image": Image()}
    row = {"type": "human_test", "question": "How tall is the bar?", "answer": "14", "image": picture(GREEN)}
    parquet(folder / "data/test-00000-of-00001.parquet", features, [row])
    return [Expected("How tall is the bar?" + PHRASE, "14", "human_test", [GREEN])]


@miniature("mathvista")
def mathvista(folder: Path) -> list[Expected]:
    texts = ("pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query")
    meta = dict.fromkeys(("category", "context", "grade", "language", "source", "split", "task"), TEXT)
    meta |= {"img_height": NUMBER, "img_width": NUMBER, "skills": List(TEXT)}
    features = {**dict.fromkeys(texts, TEXT), "decoded_image": Image(), "choices": List(TEXT)}
    features |= {"precision": Value("float64"), "metadata": meta}
    whole = {"category": "math", "context": "bar chart", "grade": "daily life", "language": "english", "source": "ours"}
    whole |= {"split": "testmini", "task": "figure question answering", "img_height": 40, "img_width": 60, "skills": []}
    row = {
        "pid": "1",
        "question": "How high?",
        "image": "images/1.jpg",
        "unit": None,
        "answer": "1.2",
        "metadata": whole,
    }
    row |= {"decoded_image": picture(RED), "choices": None, "precision": 1.0, "query": "Hint: … Question: How high?"}
    row["metadata"] = whole
    other = {"pid": "2", "question_type": "multi_choice", "answer_type": "text", "precision": None, "answer": "No"}
    rows = [
        {**row, "question_type": "free_form", "answer_type": "float"},
        {**row, **other, "choices": ["Yes", "No"], "query": "Hint: … Choices:\n(A) Yes\n(B) No"},
    ]
    parquet(folder / "data/testmini-00000-of-00001-725687bf7a18d64b.parquet", features, rows)
    facts = {"question_type": "free_form", "answer_type": "float", "precision": 1.0, "unit": None, "choices": []}
    choice = {"question_type": "multi_choice", "answer_type": "text", "precision": None, "choices": ["Yes", "No"]}
    part = "figure question answering"
    return [
        Expected("Hint: … Question: How high?", "1.2", part, [RED], facts=facts),
        Expected("Hint: … Choices:\n(A) Yes\n(B) No", "No", part, [RED], facts=choice | {"unit": None}),
    ]


@miniature("mmhal")
def mmhal(folder: Path) -> list[Expected]:
    row = {
        "question_type": "attribute",
        "question_topic": "indoor",
        "image_id": "1",
        "image_src": "https://example.org/photos/10172500456_1f40b6bd38_o.jpg",
        "image_content": ["Bag", "Desk"],
        "question": "What colour is the bag?",
        "gt_answer": "It is red | dark red.",
        "model_answer": "",
    }
    write_file(folder / "response_template.json", json.dumps([row]).encode())
    write_file(folder / "images/10172500456_1f40b6bd38_o.jpg", encoded(RED))
    facts = {"rubric": "mmhal", "contents": ["Bag", "Desk"]}
    return [Expected("What colour is the bag?", "It is red / dark red.", "attribute", [RED], facts=facts)]


# boxes


@miniature(
    *("refcoco-val", "refcoco-testa", "refcoco-testb", "refcoco-plus-val", "refcoco-plus-testa", "refcoco-plus-testb"),
    *("refcocog-val", "refcocog-test"),
)
def refcoco(folder: Path, name: str) -> list[Expected]:
    split = {"testa": "testA", "testb": "testB"}.get(end := name.rpartition("-")[2], end)
    features = {"question_id": TEXT, "image": Image(), "question": TEXT, "answer": List(TEXT)}
    features |= {"segmentation": List(Value("float32")), "bbox": List(Value("float32")), "iscrowd": Value("int8")}
    row = {
        "question_id": "1",
        "image": picture(RED),
        "question": "Describe it.",
        "answer": ["left dog", "the brown one"],
    }
    row |= {"segmentation": [1.0], "bbox": [10.5, 5.0, 20.0, 15.25], "iscrowd": 0, "file_name": "COCO_1_0.jpg"}
    parquet(folder / f"data/{split}-00000-of-00001.parquet", {**features, "file_name": TEXT}, [row])
    asked = 'Which object is this: "{}"? Answer with its bounding box.'
    gold, box = "[10.50, 5.00, 30.50, 20.25]", (10.5, 5.0, 30.5, 20.25)
    return [Expected(asked.format(words), gold, name, [RED], boxes=[box]) for words in ("left dog", "the brown one")]


# GRIT's own six


def _grit_rows(folder: Path, file: str, row: dict[str, Any], *others: dict[str, Any]) -> None:
    size = {"width": SIZE[0], "height": SIZE[1]}
    json_lines(folder / file, [{**size, "split": "val", **row, **other} for other in others])
    write_file(folder / file.partition("_")[0] / row["image"], encoded(RED))


@miniature("grit-vsr")
def grit_vsr(folder: Path) -> list[Expected]:
    row = {"image": "000000410123.jpg", "bboxs": [[3.5, 4.0, 30.0, 20.0]], "dataset": "vsr"}
    asked = {"question": "What is across from the truck?", "answer": "tv"}
    _grit_rows(folder, "vsr_val.jsonl", row, asked)
    return [Expected(asked["question"], "tv", "vsr", [RED], boxes=[(3.5, 4.0, 30.0, 20.0)])]


@miniature("grit-tallyqa")
def grit_tallyqa(folder: Path) -> list[Expected]:
    row = {"image": "VG_100K_2/2405.jpg", "bboxs": [], "dataset": "tallyqa", "question": "How many cups?"}
    _grit_rows(folder, "tallyqa_val.jsonl", row, {"answer": 3}, {"answer": "4"})  # numbers and texts in one file
    return [Expected("How many cups?", answer, "tallyqa", [RED]) for answer in ("3", "4")]


@miniature("grit-gqa")
def grit_gqa(folder: Path) -> list[Expected]:
    row = {"image": "images/2405.jpg", "bboxs": [[0, 0, 60, 40]], "dataset": "gqa", "key_words": ["bed"]}
    _grit_rows(folder, "gqa_val.jsonl", row, {"question": "Is the bed made?", "answer": "yes"})
    return [Expected("Is the bed made?", "yes", "gqa", [RED], boxes=[(0, 0, 60, 40)])]


@miniature("grit-mathvista")
def grit_mathvista(folder: Path) -> list[Expected]:
    row = {"image": "1.jpg", "bboxs": [], "dataset": "mathvista_mini", "question": "Hint: … How high?", "answer": 1.5}
    _grit_rows(folder, "mathvista_mini_val.jsonl", row, {})
    return [Expected("Hint: … How high?", "1.5", "mathvista_mini", [RED])]


@miniature("grit-mme")
def grit_mme(folder: Path) -> list[Expected]:
    row = {"image": "2.jpg", "bboxs": [], "dataset": "mme_count", "answer": "Yes"}
    _grit_rows(folder, "mme_val.jsonl", row, {"question": "Are there two dogs? Please answer yes or no."})
    return [Expected("Are there two dogs? Please answer yes or no.", "Yes", "mme_count", [RED])]


@miniature("grit-ovd-position")
def grit_ovd_position(folder: Path) -> list[Expected]:
    row = {"image": "3.jpg", "bboxs": [], "dataset": "ovd_position", "question": "Where is the left cup?"}
    _grit_rows(folder, "ovd_position_val.jsonl", row, {"answer": "[10.0, 5.5, 30.0, 20.0]"})
    gold = "[10.00, 5.50, 30.00, 20.00]"
    return [Expected("Where is the left cup?", gold, "ovd_position", [RED], boxes=[(10.0, 5.5, 30.0, 20.0)])]
