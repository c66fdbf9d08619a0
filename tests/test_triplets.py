"""Triplets: what is read from each source, what is refused and with which words, orientation, sampling."""

import io
import json
import os
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from grit_lite import tiny
from grit_lite.boxes import Box
from grit_lite.errors import DataError, NotFetched, UsageError
from grit_lite.tiny.questions import SceneQuestion
from grit_lite.triplets import COUNTING, Triplet, accept, from_scene_question, load, open_image, sample
from grit_lite.triplets.images import decode, inspect

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(size=(40, 30), color=BLUE) -> Image.Image:
    return Image.new("RGB", size, color)


def row(**changes) -> dict:
    """A good row; a value of None takes the key away."""
    values = {"question": "Is it blue?", "answer": "yes", "image": "a.png", "bboxs": [[1, 2, 11, 12]], "dataset": "vsr"}
    return {key: value for key, value in (values | changes).items() if value is not None}


def write(folder: Path, *rows: dict | str | bytes, name: str = "data.jsonl") -> Path:
    """A JSONL file beside a.png, a 40 x 30 image."""
    (folder / "a.png").write_bytes(encode(picture()))
    lines = [json.dumps(line) if isinstance(line, dict) else line for line in rows]
    (folder / name).write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return folder / name


def reasons(path: Path, **options) -> list[str]:
    return [str(bad).removeprefix(f"{path}:") for bad in load(path, **options).bad_rows]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    picture = b"VP8L" + struct.pack("<IB", 8, 0x2F) + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0\0\0"
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- a good row


def test_a_row_in_grits_schema_becomes_a_triplet(tmp_path):
    values = row(width=40, height=30, split="val", key_words=["blue"])
    [triplet] = load(write(tmp_path, values)).triplets
    expected = Triplet(
        id="data-00001",
        question="Is it blue?",
        answer="yes",
        image=(tmp_path / "a.png").resolve(),
        size=(40, 30),
        boxes=(Box(1, 2, 11, 12),),
        dataset="vsr",
        split="val",
    )
    assert triplet == expected


def test_what_a_row_leaves_out_is_filled_in(tmp_path):
    path = write(tmp_path, {"question": "How many?", "answer": 3, "image": "a.png"}, name="counts.jsonl")
    [triplet] = load(path).triplets
    assert (triplet.dataset, triplet.split, triplet.boxes, triplet.size) == ("counts", "train", (), (40, 30))


@pytest.mark.parametrize(
    ("answer", "text"), [(3, "3"), (3.0, "3"), (2.5, "2.5"), (" yes ", "yes"), (1e300, f"{1e300:.0f}")]
)
def test_an_answer_may_be_a_number(tmp_path, answer, text):
    assert load(write(tmp_path, row(answer=answer))).triplets[0].answer == text


def test_null_counts_as_left_out(tmp_path):
    path = write(tmp_path, json.dumps(row() | {"width": None, "bboxs": None}), json.dumps(row() | {"question": None}))
    loaded = load(path)
    assert loaded.triplets[0].boxes == ()
    assert loaded.bad_rows[0].reason == 'no "question"; add a text such as "How many dogs are there?"'


@pytest.mark.parametrize("name", ["boxes", "bboxes"])
def test_boxes_is_another_name_for_bboxs(tmp_path, name):
    path = write(tmp_path, row(bboxs=None, **{name: [[1, 2, 3, 4]]}), row(**{name: []}, answer="no"))
    loaded = load(path)
    assert loaded.triplets[0].boxes == (Box(1, 2, 3, 4),)
    assert [bad.line for bad in loaded.bad_rows] == [2]  # it has both names
    assert "keep one" in loaded.bad_rows[0].reason


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_fine(tmp_path):
    first, second = json.dumps(row()), json.dumps(row(question="Vert où ça?"), ensure_ascii=False)
    path = write(tmp_path, f"\ufeff{first}\r\n\r\n   \n{second}\r\n")
    loaded = load(path)
    assert not loaded.bad_rows
    assert [triplet.id for triplet in loaded.triplets] == ["data-00001", "data-00004"]


def test_an_image_may_lie_in_images_or_in_a_folder_of_its_own(tmp_path):
    for folder, color in (("images", RED), ("elsewhere", (0, 255, 0))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "b.png").write_bytes(encode(picture(color=color)))
    path = write(tmp_path, row(image="b.png"))
    assert load(path).triplets[0].load_image().getpixel((0, 0)) == RED
    assert load(path, images=tmp_path / "elsewhere").triplets[0].load_image().getpixel((0, 0)) == (0, 255, 0)


def test_columns_say_what_a_field_is_called_here(tmp_path):
    values = {"prompt": "Is it blue?", "reply": "yes", "question": "ignored", "image": "a.png"}
    path = write(tmp_path, values, values | {"reply": None})
    loaded = load(path, columns={"question": "prompt", "answer": "reply"})
    assert (loaded.triplets[0].question, loaded.triplets[0].answer) == ("Is it blue?", "yes")
    assert loaded.bad_rows[0].reason == 'no "reply"; add a text or a number'


def test_columns_of_a_field_that_does_not_exist_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'qestion'.*question, answer, image"):
        load(write(tmp_path, row()), columns={"qestion": "prompt"})


def test_only_the_rows_of_a_split_are_kept(tmp_path):
    path = write(tmp_path, row(split="train"), row(split="val", answer="no"), "{")
    loaded = load(path, split="val")
    assert [triplet.answer for triplet in loaded.triplets] == ["no"]
    assert len(loaded.bad_rows) == 1  # it may belong to the split
    with pytest.raises(DataError, match="no rows of split 'test'; it has 'train', 'val'"):
        load(write(tmp_path, row(split="train"), row(split="val", answer="no")), split="test")


def test_a_limit_reads_from_the_top(tmp_path):
    path = write(tmp_path, *(row(answer=number) for number in range(5)))
    assert [triplet.answer for triplet in load(path, limit=2).triplets] == ["0", "1"]


# --- bad rows: JSON and fields

BAD_LINES = {
    "trailing comma": ('{"question": "a",}', "1: not JSON at column 18: "),
    "cut short": ('{"question": "a', "1: not JSON at column 14: Unterminated string"),
    "two objects": ('{"a": 1} {"a": 1}', "1: not JSON at column 10: Extra data. Write one object {…} per line"),
    "not UTF-8": (b'{"question": "\xff"}', "1: not UTF-8 (byte 0xff at column 15); save the file as UTF-8"),
    "UTF-16": ("\ufeffx".encode("utf-16-le"), "1: not UTF-8 (byte 0xff at column 1)"),
    "a list": ("[1, 2]", "1: a row is one JSON object {…} per line; this is [1, 2]"),
    "a key twice": ('{"answer": 1, "answer": 2}', "1: the key 'answer' is there twice; keep one"),
    "NaN": ('{"bboxs": [[NaN, 0, 1, 1]]}', "1: NaN is not a number that JSON has"),
    "Infinity": ('{"width": -Infinity}', "1: -Infinity is not a number that JSON has"),
    "1e999": ('{"width": -1e999}', "1: '-1e999' is too large for a number"),
    "5,000 digits": ('{"width": ' + "9" * 5000 + "}", "1: a number in it has thousands of digits"),
    "nested deeply": ('{"a": ' + "[" * 100_000, "1: not a row: its brackets are nested too deeply"),
    "a long line": ("x" * 3_000_000, "1: the line is longer than 1,048,576 bytes"),
    "empty object": ("{}", '1: no "question"; add a text such as'),
    "no answer": (row(answer=None), '1: no "answer"; add a text or a number'),
    "no image": (row(image=None), '1: no "image"; add the path of an image file, relative to the data'),
    "empty question": (row(question="  "), "1: \"question\" is '  '; it has to be a text such as"),
    "empty answer": (row(answer=""), "1: \"answer\" is ''; it has to be a text or a number"),
    "answer is true": (row(answer=True), '1: "answer" is True; it has to be a text or a number'),
    "answer is a list": (row(answer=["a", "b"]), "1: \"answer\" is ['a', 'b']; it has to be a text or a number"),
    "half a letter": (row(question="\ud800"), "1: \"question\" is '\\ud800'; it has to be a text"),
    "image is a number": (row(image=7), '1: "image" is 7; it has to be the path of an image file'),
    "width is text": (row(width="40"), "1: \"width\" is '40'; it has to be the image's width in pixels, or left out"),
    "one box unwrapped": (row(bboxs=[1, 2, 3, 4]), '1: "bboxs" is [1, 2, 3, 4]; it has to be [[x1, y1, x2, y2], …]'),
    "three numbers": (row(bboxs=[[1, 2, 3]]), '1: "bboxs" is [[1, 2, 3]]; it has to be'),
    "a box of text": (row(bboxs=[["1", 2, 3, 4]]), "1: \"bboxs\" is [['1', 2, 3, 4]]; it has to be"),
    "a huge box": (row(bboxs=[[0, 0, 10**400, 4]]), '1: "bboxs" is [[0, 0, 1000'),
    "dataset is a number": (row(dataset=3), '1: "dataset" is 3; it has to be a name such as "tallyqa"'),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_its_reason(tmp_path, line, reason):
    [said] = reasons(write(tmp_path, line))
    assert said.startswith(reason)


def test_all_that_is_wrong_with_a_rows_fields_is_said_at_once(tmp_path):
    [said] = reasons(write(tmp_path, row(question=None, answer=[], width="w")))
    assert said == (
        '1: no "question"; add a text such as "How many dogs are there?"; "answer" is []; it has to be a text or a '
        "number; \"width\" is 'w'; it has to be the image's width in pixels, or left out"
    )


def test_every_bad_row_is_listed_and_the_good_ones_are_there(tmp_path):
    rows = [row(answer=number) if number % 3 else "{" for number in range(300)]
    loaded = load(write(tmp_path, *rows))
    assert [bad.line for bad in loaded.bad_rows] == [number + 1 for number in range(300) if number % 3 == 0]
    assert len(loaded.triplets) == 200


def test_the_same_question_image_and_answer_is_a_duplicate_even_in_a_copy_of_the_image(tmp_path):
    path = write(tmp_path, row(), row(answer="no"), row(image="copy.png", dataset="other"))
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert reasons(path) == [f"3: the same question, image and answer as {path}:1; delete one of them"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise_anything_but_a_data_error(tmp_path, content):
    (tmp_path / "data.jsonl").write_bytes(content)
    with suppress(DataError):  # it holds no rows
        assert load(tmp_path / "data.jsonl").triplets == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELD = st.sampled_from(["question", "answer", "image", "width", "height", "bboxs", "boxes", "dataset", "split"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(FIELD, ANYTHING, min_size=1, max_size=3))
def test_whatever_a_field_holds_the_row_is_a_triplet_or_bad(tmp_path, changes):
    loaded = load(write(tmp_path, json.dumps(row() | changes)))
    assert len(loaded.triplets) + len(loaded.bad_rows) == 1
    assert all("\n" not in str(bad) and str(bad).isprintable() for bad in loaded.bad_rows)


def test_a_bad_row_as_text_cannot_steer_a_terminal(tmp_path):
    loaded = load(write(tmp_path, row(answer="\x1b[2J\u202e", image="b\x1b]8;;x\x07.png"), name="\x1b[31mred.jsonl"))
    assert str(loaded.bad_rows[0]).startswith(f"{tmp_path}/red.jsonl:1: image 'b\\x1b]8;;x\\x07.png' has a backslash")


# --- bad rows: images

PHOTO = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)), "JPEG")
NOISE = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)))

BAD_IMAGES = {
    "zero bytes": (b"", "it is empty (0 bytes); fetch it again"),
    "text": (
        b"not an image at all",
        "it is not a JPEG, PNG or WebP image (it starts with b'not an image'); convert it",
    ),
    "GIF": (encode(picture(), "GIF"), "it is not a JPEG, PNG or WebP image (it starts with b'GIF8"),
    "BMP": (encode(picture(), "BMP"), "it is not a JPEG, PNG or WebP image (it starts with b'BM"),
    "TIFF": (encode(picture(), "TIFF"), "it is not a JPEG, PNG or WebP image"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not a JPEG, PNG or WebP image"),
    "half a JPEG": (PHOTO[: len(PHOTO) // 2], "the JPEG is truncated or damaged (image file is truncated"),
    "half a PNG": (NOISE[: len(NOISE) // 2], "the PNG is truncated or damaged"),
    "half a WebP": (encode(picture(), "WEBP")[:-20], "the WebP is truncated or damaged"),
    "a JPEG's first bytes": (PHOTO[:20], "the JPEG is truncated or damaged"),
    "a PNG's signature": (NOISE[:8], "the PNG is truncated or damaged"),
    "a flipped bit in a PNG": (
        NOISE[:500] + bytes([NOISE[500] ^ 1]) + NOISE[501:],
        "the PNG is truncated or damaged (broken PNG file (bad header checksum in b'IDAT'))",
    ),
    "a PNG of 900 megapixels": (
        png_header(30_000, 30_000),
        "its header says 30000 x 30000, which is 900,000,000 pixels; the limit is 64,000,000, so resize it",
    ),
    "a WebP of 268 megapixels": (webp_header(16383, 16383), "its header "),
}


@pytest.mark.parametrize(("content", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_named_with_its_reason(tmp_path, content, reason):
    path = write(tmp_path, row(image="bad.jpg"))
    (tmp_path / "bad.jpg").write_bytes(content)
    [said] = reasons(path)
    assert said.startswith(f"1: image 'bad.jpg': {reason}")


def test_a_forged_header_costs_no_memory(tmp_path):
    path = write(tmp_path, row(image="bomb.png"))
    (tmp_path / "bomb.png").write_bytes(png_header(30_000, 30_000))
    tracemalloc.start()
    load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_limit_of_pixels_is_the_callers(tmp_path):
    path = write(tmp_path, row())
    assert reasons(path, max_image_pixels=40 * 30) == []
    [said] = reasons(path, max_image_pixels=40 * 30 - 1)
    assert "its header says 40 x 30, which is 1,200 pixels; the limit is 1,199, so resize it" in said


def test_a_huge_file_is_not_read(tmp_path):
    path = write(tmp_path, row(image="huge.png"))
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(300 * 1024 * 1024)  # sparse: it takes no room
    assert reasons(path) == ["1: image 'huge.png': it has 314,572,800 bytes; the limit is 268,435,456; resize it"]


def test_a_folder_or_a_pipe_is_not_an_image(tmp_path):
    path = write(tmp_path, row(image="folder.png"), row(image="pipe.png"))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert [said.partition(": it ")[2] for said in reasons(path)] == ["is not a file; give the path of an image"] * 2


FOREIGN_PATHS = {
    "/etc/passwd": "is an absolute path; give one relative to the data",
    "../secret.png": "leads out of its folder; put the image beside the data",
    "images/../../secret.png": "leads out of its folder",
    "C:\\secret.png": "is an absolute path",
    "C:secret.png": "is an absolute path",
    "\\\\server\\share\\secret.png": "is an absolute path",
    "..\\secret.png": "has a backslash or an unprintable letter; write folders as a/b.png",
    "images\\a.png": "has a backslash",
    "a\u0000.png": "has a backslash or an unprintable letter",
    "\u001b[2Ja.png": "has a backslash or an unprintable letter",
    "https://example.org/a.png": "is an address; download it and give the path of the file",
    "file:///etc/passwd": "is an address",
    "link.png": "is a link that leads out of",
    "linked/secret.png": "is a link that leads out of",
    "loop.png": "",
    "a" * 300: "",
    "missing.png": "",
}


@pytest.mark.parametrize(("name", "reason"), FOREIGN_PATHS.items(), ids=map(ascii, FOREIGN_PATHS))
def test_an_image_path_does_not_lead_out_of_the_data(tmp_path, name, reason):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(encode(picture()))
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "linked").symlink_to(tmp_path)
    (inside / "loop.png").symlink_to(inside / "loop.png")
    loaded = load(write(inside, row(image=name)))
    assert loaded.triplets == []
    assert reason in loaded.bad_rows[0].reason


def test_a_missing_image_says_where_it_was_looked_for(tmp_path):
    assert reasons(write(tmp_path, row(image="b.png"))) == [
        f"1: there is no image 'b.png' in {tmp_path} or {tmp_path / 'images'}; put it there or correct the path"
    ]


def test_a_link_within_the_data_is_followed(tmp_path):
    path = write(tmp_path, row(image="link.png"))
    (tmp_path / "link.png").symlink_to("a.png")
    assert load(path).triplets[0].load_image().size == (40, 30)


# --- bad rows: size and boxes

BAD_BOXES = {
    "x turned round": ([11, 2, 1, 12], "box 1 [11, 2, 1, 12] has no area; it has to be [x1, y1, x2, y2] with x1 < x2"),
    "y turned round": ([1, 12, 11, 2], "box 1 [1, 12, 11, 2] has no area"),
    "a line": ([1, 2, 1, 12], "box 1 [1, 2, 1, 12] has no area"),
    "a sliver that is cut off": ([-0.4, 2, -0.1, 12], "box 1 [-0.4, 2, -0.1, 12] has no area"),
    "right of it": (
        [1, 2, 41, 12],
        "box 1 [1, 2, 41, 12] reaches outside the image, 40 x 30; give pixels of the image",
    ),
    "below it": ([1, 2, 11, 30.6], "box 1 [1, 2, 11, 30.6] reaches outside the image"),
    "left of it": ([-1, 2, 11, 12], "box 1 [-1, 2, 11, 12] reaches outside the image"),
    "fractions": (
        [0.1, 0.2, 0.5, 1.0],
        "box 1 [0.1, 0.2, 0.5, 1] looks like fractions of the image; multiply by 40 and 30",
    ),
}


@pytest.mark.parametrize(("box", "reason"), BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_a_bad_box_is_named_with_its_reason(tmp_path, box, reason):
    [said] = reasons(write(tmp_path, row(bboxs=[box, [1, 2, 3, 4]])))
    assert said.startswith(f"1: {reason}")
    assert "box 2" not in said


def test_a_box_that_rounding_put_half_a_pixel_outside_is_cut_at_the_edge(tmp_path):
    [triplet] = load(write(tmp_path, row(bboxs=[[-0.5, -0.4, 40.5, 30.2]]))).triplets
    assert triplet.boxes == (Box(0, 0, 40, 30),)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            {"width": 80, "height": 60},
            "width and height say 80 x 60, the image has 40 x 30; its boxes may be of another",
        ),
        ({"width": 30, "height": 40}, "width and height say 30 x 40, the image has 40 x 30"),
        ({"width": 41}, "width and height say 41 x 30, the image has 40 x 30"),
        ({"height": 0}, "width and height say 40 x 0, the image has 40 x 30"),
    ],
)
def test_a_size_that_is_not_the_images_is_refused(tmp_path, size, said):
    assert reasons(write(tmp_path, row(**size)))[0].startswith(f"1: {said}")


# --- upright and RGB


def turned(orientation: int, kind: str, box: Box) -> bytes:
    """A blue 40 x 30 file with a red box in stored pixels and an EXIF orientation."""
    image, exif = picture(), Image.Exif()
    image.paste(RED, tuple(map(int, box)))
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    return encode(image, kind, exif=exif, **options)


def red_box(image: Image.Image) -> Box:
    """The bounding box of what is red."""
    reds = np.argwhere(np.asarray(image)[..., 0] > 128)  # rows of (y, x)
    (top, left), (bottom, right) = reds.min(0), reds.max(0) + 1
    return Box(left, top, right, bottom)


STORED = Box(3, 5, 15, 21)  # in 40 x 30
UPRIGHT = {  # by hand, x' and y' from x and y
    1: Box(3, 5, 15, 21),  # x, y
    2: Box(25, 5, 37, 21),  # 40 - x, y
    3: Box(25, 9, 37, 25),  # 40 - x, 30 - y
    4: Box(3, 9, 15, 25),  # x, 30 - y
    5: Box(5, 3, 21, 15),  # y, x
    6: Box(9, 3, 25, 15),  # 30 - y, x
    7: Box(9, 25, 25, 37),  # 30 - y, 40 - x
    8: Box(5, 25, 21, 37),  # y, 40 - x
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_image_is_put_upright_and_its_boxes_go_with_it(tmp_path, orientation, kind):
    path = write(tmp_path, row(image="turned", bboxs=[list(STORED)], width=40, height=30))
    (tmp_path / "turned").write_bytes(turned(orientation, kind, STORED))
    [triplet] = load(path).triplets
    image = triplet.load_image()
    assert triplet.boxes == (UPRIGHT[orientation],)
    assert image.size == triplet.size == ((30, 40) if orientation >= 5 else (40, 30))
    assert red_box(image) == UPRIGHT[orientation]
    assert image.getexif().get(0x0112) is None  # nobody turns it a second time


def test_boxes_given_for_the_turned_image_are_refused_with_the_reason(tmp_path):
    path = write(tmp_path, row(image="turned.jpg", width=30, height=40))
    (tmp_path / "turned.jpg").write_bytes(turned(6, "JPEG", STORED))
    assert reasons(path) == [
        (
            "1: width and height are those of the turned image, 30 x 40; the file stores 40 x 30 with EXIF orientation "
            "6. Give size and boxes in stored pixels, or save the image upright"
        )
    ]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    assert inspect(turned(orientation, "PNG", STORED)).size == (40, 30)


def test_an_unreadable_exif_note_turns_nothing():
    assert inspect(encode(picture(), "PNG", exif=b"Exif\0\0nonsense")).size == (40, 30)


def half_transparent(mode: str) -> Image.Image:
    """The left pixel transparent red, the right one solid red."""
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((0, 0), (*RED, 0))
    return image.convert(mode)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encode(image, transparency=0)


def frames(kind: str) -> bytes:
    return encode(picture(color=RED), kind, save_all=True, append_images=[picture()], duration=50, lossless=True)


MODES = {  # file -> its first and its last pixel
    "RGBA": (encode(half_transparent("RGBA")), (255, 255, 255), RED),
    "grey with alpha": (encode(half_transparent("LA")), (255, 255, 255), (76, 76, 76)),  # 0.299 · 255
    "palette, one colour transparent": (palette_with_transparency(), (255, 255, 255), BLUE),
    "RGB, one colour transparent": (encode(picture(color=RED), transparency=RED), (255, 255, 255), (255, 255, 255)),
    "WebP with alpha": (encode(half_transparent("RGBA"), "WEBP", lossless=True), (255, 255, 255), RED),
    "grey": (encode(Image.new("L", (2, 1), 100)), (100, 100, 100), (100, 100, 100)),
    "one bit": (encode(Image.new("1", (2, 1), 1)), (255, 255, 255), (255, 255, 255)),
    # 25,700 of 65,535 is 100 of 255
    "16 bit": (encode(Image.fromarray(np.array([[25_700, 65_535]], np.uint16))), (100, 100, 100), (255, 255, 255)),
    "CMYK": (encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), RED, RED),
    "animated PNG": (frames("PNG"), RED, RED),
    "animated WebP": (frames("WEBP"), RED, RED),
}


@pytest.mark.parametrize(("content", "first", "last"), MODES.values(), ids=MODES.keys())
def test_every_kind_of_image_comes_out_as_rgb(content, first, last):
    image = decode(content)
    assert image.mode == "RGB"
    assert np.allclose(image.getpixel((0, 0)), first, atol=1)
    assert np.allclose(image.getpixel((image.width - 1, image.height - 1)), last, atol=1)


def test_open_image_names_the_file_and_what_is_wrong(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    (tmp_path / "b.png").write_text("hello")
    assert open_image(tmp_path / "a.png").size == (40, 30)
    with pytest.raises(DataError, match=r"^Image '.*b.png': it is not a JPEG, PNG or WebP image .*; convert it.$"):
        open_image(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"^Image '.*c.png': there is no such file; check the path.$"):
        open_image(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"it cannot be read .File name too long.; check its name and permissions"):
        open_image(tmp_path / ("d" * 300))


def test_an_image_that_changed_after_the_check_is_not_used(tmp_path):
    [triplet] = load(write(tmp_path, row())).triplets
    (tmp_path / "a.png").write_bytes(encode(picture((41, 30))))
    with pytest.raises(DataError, match="data-00001 has 41 x 30 pixels; when the data was checked it had 40 x 30"):
        triplet.load_image()
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="data-00001 cannot be read: there is no such file"):
        triplet.load_image()


def test_loading_an_image_twice_gives_two_images(tmp_path):
    scene = SceneQuestion("Is it blue?", "yes", "attribute", (), picture())
    for triplet in (*load(write(tmp_path, row())).triplets, from_scene_question(scene, 0)):
        triplet.load_image().paste(RED, (0, 0, 40, 30))
        assert triplet.load_image().getpixel((0, 0)) == BLUE


# --- identity


def test_ids_are_unique_and_safe_as_file_names(tmp_path):
    names = ["a b.jsonl", "a_b.jsonl", "a-b.jsonl", "A-B.jsonl", "été.jsonl", "x" * 60 + ".jsonl", "\udcff.jsonl"]
    for number, name in enumerate(names):
        write(tmp_path, row(answer=number), row(answer=100 + number), name=name)
    ids = [triplet.id for triplet in load(tmp_path).triplets]
    assert len({identity.lower() for identity in ids}) == 2 * len(names)
    assert all(
        len(identity) < 60 and set(identity) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for identity in ids
    )
    assert ids == [triplet.id for triplet in load(tmp_path).triplets]


def test_the_hash_is_of_what_the_data_says_not_of_where_it_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    first = load(write(tmp_path / "one", row(), row(answer="no")))
    moved = load(write(tmp_path / "two", row(split=None, key="ignored"), "{", row(answer="no"), name="other.jsonl"))
    assert first.sha256 == moved.sha256
    assert load(write(tmp_path / "one", row(), row(answer="No"))).sha256 != first.sha256
    path = write(tmp_path / "one", row(), row(answer="no"))
    (tmp_path / "one" / "a.png").write_bytes(encode(picture(color=RED)))
    assert load(path).sha256 != first.sha256


def test_a_scene_question_becomes_a_triplet():
    boxes = (Box(1, 2, 3, 4),)
    triplet = from_scene_question(SceneQuestion("How many?", "1", "count", boxes, picture()), 7, "validation")
    assert (triplet.id, triplet.dataset) == ("shapes_count-validation-00007", "shapes_count")
    assert (triplet.size, triplet.boxes, triplet.split) == ((40, 30), boxes, "validation")
    assert triplet.dataset in COUNTING


# --- sources


def test_a_folder_is_read_by_what_it_holds(tmp_path):
    write(tmp_path, row(answer="b"), name="b.jsonl")
    write(tmp_path, row(answer="a"), name="a.jsonl")
    assert [triplet.answer for triplet in load(tmp_path).triplets] == ["a", "b"]
    write(tmp_path, row(image=None, file_name="a.png", answer="c"), name="metadata.jsonl")
    assert [triplet.answer for triplet in load(tmp_path).triplets] == ["c"]
    write(tmp_path, row(answer="d"), name="triplets.jsonl")
    assert [triplet.answer for triplet in load(str(tmp_path)).triplets] == ["d"]


def test_a_source_that_is_not_there_says_what_can_be_given(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for source, reason in {
        "nowhere": "There is no data at .*nowhere. Give a .jsonl file, a folder",
        "rows.csv": "rows.csv is neither a .jsonl nor a .parquet file. Give a .jsonl",
        "empty": "The folder .*empty holds no .jsonl file and no saved dataset",
        "empty.jsonl": "empty.jsonl holds no rows. A row is",
    }.items():
        with pytest.raises(DataError, match=reason):
            load(tmp_path / source)


def test_a_file_that_cannot_be_read_is_one_clear_message(tmp_path):
    (tmp_path / "data.jsonl").symlink_to("/proc/self/mem")  # opens, and then fails to be read, even for root
    with pytest.raises(DataError, match=r"data.jsonl cannot be read \(Input/output error\). Check its permissions."):
        load(tmp_path / "data.jsonl")


def test_the_embedded_triplets_are_ten_relations_and_ten_counts():
    loaded = load("embedded")
    assert not loaded.bad_rows
    assert loaded.source == "embedded"
    datasets = [triplet.dataset for triplet in loaded.triplets]
    assert (datasets.count("shapes_relation"), datasets.count("shapes_count"), len(datasets)) == (10, 10, 20)
    assert all(triplet.load_image().size == (112, 112) for triplet in loaded.triplets)
    assert loaded.sha256 == load(tiny.TRIPLETS).sha256


# --- accepting


def test_bad_rows_are_refused_with_the_way_out_or_skipped(tmp_path):
    path = write(tmp_path, row(), "{", *[row(answer=None)] * 60)
    loaded = load(path)
    with pytest.raises(DataError) as refusal:
        accept(loaded)
    lines = str(refusal.value).split("\n")
    assert lines[0] == f"{path}: 61 of 62 rows cannot be used:"
    assert lines[1].startswith(f"  {path}:2: not JSON at column 1: ")
    assert lines[-2] == f"  … and 11 more; `grit-lite data check {path}` lists them all"
    assert lines[-1] == "Put them right, or leave them out with --bad-rows skip."
    assert len(lines) == 1 + 50 + 2
    assert [triplet.answer for triplet in accept(loaded, "skip")] == ["yes"]


def test_skipping_every_row_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 of 1 rows cannot be used:\n.*\nNo row is left to train on"):
        accept(load(write(tmp_path, "{")), "skip")


def test_good_rows_are_accepted(tmp_path):
    assert len(accept(load(write(tmp_path, row())))) == 1


# --- sampling


def many(**sizes: int) -> list[Triplet]:
    return [
        Triplet(f"{dataset}-{number}", "?", "yes", picture(), (40, 30), (), dataset, "train")
        for dataset, size in sizes.items()
        for number in range(size)
    ]


def count(triplets: list[Triplet]) -> dict[str, int]:
    return {dataset: sum(triplet.dataset == dataset for triplet in triplets) for dataset in "abc"}


@pytest.mark.parametrize(
    ("sizes", "n", "shares"),
    [
        ({"a": 10, "b": 10}, 20, {"a": 10, "b": 10, "c": 0}),
        ({"a": 400, "b": 100}, 20, {"a": 10, "b": 10, "c": 0}),  # equal, not in proportion
        ({"a": 400, "b": 4}, 20, {"a": 16, "b": 4, "c": 0}),  # b has no more
        ({"a": 5, "b": 9}, 7, {"a": 3, "b": 4, "c": 0}),  # the odd one goes to the larger
        ({"a": 2, "b": 30, "c": 30}, 20, {"a": 2, "b": 9, "c": 9}),
        ({"a": 3, "b": 3, "c": 3}, 1, {"a": 0, "b": 0, "c": 1}),
    ],
)
def test_a_sample_takes_equally_many_of_each_dataset_as_far_as_they_reach(sizes, n, shares):
    chosen = sample(many(**sizes), n, seed=0)
    assert count(chosen) == shares
    assert len({triplet.id for triplet in chosen}) == n


def test_a_sample_depends_on_the_seed_and_on_nothing_else():
    triplets = many(a=50, b=50)
    chosen = [triplet.id for triplet in sample(triplets, 6, seed=3)]
    assert chosen == [triplet.id for triplet in sample(triplets, 6, seed=3)]
    # of the SHA-256 of "3/0/a" … "3/49/a", those three are the smallest; a change of these names changes past samples
    assert chosen == ["a-19", "a-39", "a-41", "b-8", "b-10", "b-37"]
    assert chosen != [triplet.id for triplet in sample(triplets, 6, seed=4)]


def test_a_larger_sample_contains_a_smaller_one_and_keeps_the_order():
    triplets = many(a=50, b=50)
    small, large = sample(triplets, 10, seed=0), sample(triplets, 40, seed=0)
    assert {triplet.id for triplet in small} < {triplet.id for triplet in large}
    assert [triplets.index(triplet) for triplet in large] == sorted(triplets.index(triplet) for triplet in large)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(), data=st.data())
def test_shares_differ_by_at_most_one_unless_a_dataset_is_used_up(sizes, seed, data):
    triplets = many(**{f"set{number}": size for number, size in enumerate(sizes)})
    n = data.draw(st.integers(1, len(triplets)))
    chosen = sample(triplets, n, seed)
    taken = [sum(triplet.dataset == f"set{number}" for triplet in chosen) for number in range(len(sizes))]
    assert sum(taken) == n
    open_ended = [share for share, size in zip(taken, sizes, strict=True) if share < size]
    assert all(share >= max(taken) - 1 for share in open_ended)


@pytest.mark.parametrize(
    ("n", "counting", "relation"), [(20, 10, 10), (21, 11, 10), (1, 1, 0), (140, 80, 60), (160, 100, 60)]
)
def test_grits_rows_are_drawn_half_of_counts_and_half_of_relations(n, counting, relation):
    drawn = [row.dataset for row in sample(many(tallyqa=100, vsr=60), n, seed=0)]
    assert (drawn.count("tallyqa"), drawn.count("vsr")) == (counting, relation)
    assert {row.dataset for row in sample(many(tallyqa=100), min(n, 100), seed=0)} == {"tallyqa"}


def numbered(folder: Path, bad: set[int] = frozenset()) -> Path:
    """Twelve rows with an image each, six of each dataset; `bad` ones are cut short."""
    content = encode(picture((64, 64)), "JPEG")
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(content[: 300 if number in bad else None])
    kinds = ["vsr"] * 6 + ["tallyqa"] * 6
    return write(folder, *(row(answer=f"{n}", image=f"{n}.jpg", dataset=kind) for n, kind in enumerate(kinds)))


@pytest.mark.parametrize("seed", [0, 1])
def test_only_images_of_rows_that_are_drawn_are_opened(tmp_path, seed):
    drawn = sample(load(numbered(tmp_path)).triplets, 4, seed)
    loaded = load(numbered(tmp_path, bad={*range(12)} - {int(row.answer) for row in drawn}), draw=(4, seed))
    assert (loaded.triplets, loaded.bad_rows, loaded.rows) == (drawn, [], 12)
    assert sample(loaded.triplets, 4, seed) == drawn
    assert loaded.sha256 == load(numbered(tmp_path), draw=(4, seed)).sha256


def test_where_a_drawn_image_is_bad_every_row_is_looked_at(tmp_path):
    first = int(sample(load(numbered(tmp_path)).triplets, 4, 0)[0].answer)
    data = numbered(tmp_path, bad={first, 11, 10})
    assert load(data, draw=(4, 0)) == load(data)
    assert {row.line for row in load(data, draw=(4, 0)).bad_rows} == {first + 1, 12, 11}


def test_where_a_row_is_bad_or_all_are_drawn_every_row_is_looked_at(tmp_path):
    data = numbered(tmp_path)
    for draw in ((12, 0), (13, 0), (None, 0), (0, 0)):
        assert load(data, draw=draw) == load(data)
    data.write_bytes(data.read_bytes() + b"\nnot a row")
    assert load(data, draw=(4, 0)) == load(data)
    assert len(load(data, draw=(4, 0)).triplets) == 12


def test_no_number_takes_all():
    assert len(sample(many(a=3), None, seed=0)) == 3


def test_asking_for_more_than_there_are_names_how_many_there_are():
    with pytest.raises(DataError, match=r"20 triplets were asked for, but the data has 3. Ask for 3 or fewer"):
        sample(many(a=3), 20, seed=0)
    with pytest.raises(UsageError, match="0 triplets were asked for; ask for 1 or more"):
        sample(many(a=3), 0, seed=0)


# --- Hugging Face datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module.disable_progress_bars()
    return module


def columns_of(module, image_feature) -> dict:
    """Two rows as a dataset might have them, with names of its own."""
    images = [turned(6, "JPEG", STORED), encode(picture())]
    if isinstance(image_feature, module.Image):
        images = [{"bytes": content, "path": None} for content in images]
    return {
        "prompt": ["Is it red?", "Is it blue?"],
        "label": [1, 0],
        "photo": images,
        "bboxs": [[list(STORED)], None],
        "other": [picture(), picture()],
    }


def dataset_of(module, image_feature=None):
    image_feature = image_feature or module.Image()
    features = {
        "prompt": module.Value("string"),
        "label": module.ClassLabel(names=["no", "yes"]),
        "photo": image_feature,
        "bboxs": module.List(module.List(module.Value("float64"))),
        "other": module.Image(),
    }
    return module.Dataset.from_dict(columns_of(module, image_feature), features=module.Features(features))


NAMES = {"question": "prompt", "answer": "label", "image": "photo"}


def check_two_rows(loaded, dataset: str, split: str) -> None:
    first, second = loaded.triplets
    assert (first.question, first.answer, second.answer) == ("Is it red?", "yes", "no")
    assert (first.dataset, first.split) == (dataset, split)
    assert first.boxes == (UPRIGHT[6],)  # the library has not turned the image before us
    assert red_box(first.load_image()) == UPRIGHT[6]
    assert second.boxes == ()


def test_a_dataset_saved_to_disk_is_read_with_its_images_as_stored(tmp_path, datasets):
    dataset_of(datasets).save_to_disk(tmp_path / "Saved")
    check_two_rows(load(tmp_path / "Saved", columns=NAMES), "saved", "train")
    check_two_rows(load(f"hf:{tmp_path / 'Saved'}:test", columns=NAMES), "saved", "test")


def test_a_split_of_several_saved_ones_is_read(tmp_path, datasets):
    datasets.DatasetDict({"val": dataset_of(datasets)}).save_to_disk(tmp_path / "saved")
    check_two_rows(load(tmp_path / "saved", columns=NAMES, split="val"), "saved", "val")
    check_two_rows(load(f"hf:{tmp_path / 'saved'}:train", columns=NAMES, split="val"), "saved", "val")
    with pytest.raises(DataError, match="has no split 'train'; it has val"):
        load(tmp_path / "saved", columns=NAMES)


@pytest.mark.parametrize("binary", [False, True])
def test_a_parquet_file_or_a_folder_of_them_is_read(tmp_path, datasets, binary):
    (tmp_path / "shapes").mkdir()
    file = tmp_path / "shapes" / "train-00000-of-00001.parquet"
    dataset_of(datasets, datasets.Value("binary") if binary else None).to_parquet(file)
    check_two_rows(load(tmp_path / "shapes", columns=NAMES), "shapes", "train")
    check_two_rows(load(file, columns=NAMES), "train-00000-of-00001", "train")


def test_a_configuration_of_a_dataset_is_named_before_the_split(tmp_path, datasets):
    folder = tmp_path / "shapes"
    folder.mkdir()
    for name, rows in (("easy", [0]), ("hard", [0, 1])):
        dataset_of(datasets).select(rows).to_parquet(folder / f"{name}.parquet")
    files = "data_files: [{split: val, path: %s.parquet}]"
    configurations = ", ".join(f"{{config_name: {name}, {files % name}}}" for name in ("easy", "hard"))
    (folder / "README.md").write_text(f"---\nconfigs: [{configurations}]\n---\n")
    check_two_rows(load(f"hf:{folder}:hard:val", columns=NAMES), "shapes", "val")
    assert len(load(f"hf:{folder}:easy:val", columns=NAMES).triplets) == 1
    assert len(load(f"hf:{folder}:hard:train", columns=NAMES, split="val").triplets) == 2
    with pytest.raises(DataError, match=r"(?s)Config name is missing.*'easy', 'hard'.*hf:NAME:CONFIGURATION:SPLIT"):
        load(f"hf:{folder}:val", columns=NAMES)
    with pytest.raises(DataError, match=r"'other' not found. Available: \['easy', 'hard'\]"):
        load(f"hf:{folder}:other:val", columns=NAMES)


def test_a_colon_in_the_name_of_a_folder_belongs_to_it(tmp_path, datasets):
    dataset_of(datasets).save_to_disk(tmp_path / "a:b:c")
    check_two_rows(load(f"hf:{tmp_path / 'a:b:c'}", columns=NAMES), "a:b:c", "train")
    check_two_rows(load(f"hf:{tmp_path / 'a:b:c'}:val", columns=NAMES), "a:b:c", "val")


def test_pictures_in_memory_and_boxes_under_another_name_are_read(tmp_path, datasets):
    pictures = [picture(), picture((64, 48))]
    rows = {"question": ["1", "2"], "answer": ["a", "b"], "image": pictures, "objects": [[[1, 2, 11, 12]], []]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    for columns, boxes in (({}, ()), ({"bboxs": "objects"}, (Box(1, 2, 11, 12),))):
        one, two = load(tmp_path / "saved", columns=columns).triplets
        assert (one.boxes, one.size) == (boxes, (40, 30))
        assert (two.boxes, two.load_image().size) == ((), (64, 48))


def test_image_paths_of_a_dataset_stay_in_its_folder(tmp_path, datasets):
    (tmp_path / "secret.png").write_bytes(encode(picture()))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(picture()))
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png"), str(folder / "a.png")]
    for feature, good in ((datasets.Value("string"), {1}), (datasets.Image(), {1, 4})):
        rows = {"question": list("1234"), "answer": list("1234")}
        images = [{"bytes": None, "path": path} for path in paths] if len(good) == 2 else paths
        features = {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": feature}
        table = datasets.Dataset.from_dict(rows | {"image": images}, features=datasets.Features(features))
        import pyarrow.parquet

        pyarrow.parquet.write_table(table.data.table, folder / "rows.parquet")
        loaded = load(folder / "rows.parquet")
        assert {int(triplet.answer) for triplet in loaded.triplets} == good
        assert "leads out of its folder" in loaded.bad_rows[0].reason
        assert "is an absolute path" in loaded.bad_rows[1].reason
        assert str(loaded.bad_rows[0]).startswith(f"hf:{folder / 'rows.parquet'}:train:2: ")


def test_an_image_that_is_only_a_path_on_the_hub_is_not_looked_for_here(tmp_path, datasets, monkeypatch):
    (tmp_path / "cache").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "cache" / "a.png", tmp_path / "cache" / "b.png"):
        path.write_bytes(encode(picture()))
    monkeypatch.chdir(tmp_path / "cache")
    paths = ["a.png", str(tmp_path / "a.png"), str(tmp_path / "cache" / "b.png")]
    images = [{"bytes": None, "path": path} for path in paths]
    rows = {"question": list("123"), "answer": list("123"), "image": images}
    features = {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    published = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, _, split: {("nobody/shapes", "test"): published}[name, split]
    )
    loaded = load("hf:nobody/shapes:test")
    assert loaded.bad_rows[0].reason == "image 'a.png' is only a path; download the dataset and give its folder"
    assert loaded.bad_rows[1].reason.endswith("is an absolute path; give one relative to the data")
    assert [triplet.answer for triplet in loaded.triplets] == ["3"]  # it lies where the library puts images


def test_a_column_that_a_dataset_does_not_have_is_named(tmp_path, datasets):
    dataset_of(datasets).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"has no column 'question'; it has prompt, label, photo.*columns: {question: "):
        load(tmp_path / "saved")


def test_a_dataset_that_is_not_here_and_cannot_be_fetched_is_one_clear_message(datasets):
    message = r"'nobody/nothing' is not on this machine, and the hub cannot be reached.*data check hf:nobody/nothing"
    with pytest.raises(NotFetched, match=message):
        load("hf:nobody/nothing:test")


def test_a_damaged_parquet_file_is_one_clear_message(tmp_path, datasets):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match=r"bad.parquet' cannot be opened: "):
        load(tmp_path / "bad.parquet")
