"""A benchmark's row: its images, whatever they come from, and what tells one row's image from another's."""

import io
from pathlib import Path

import pytest
from PIL import Image

from grit_lite.boxes import Box
from grit_lite.errors import DataError
from grit_lite.evaluate.question import Question, from_triplet
from grit_lite.triplets import Triplet

RED = Image.new("RGB", (40, 30), "red")


def question(*images: Path | bytes | Image.Image) -> Question:
    return Question("q1", "Is it red?", "yes", images, (40, 30))


def file_of(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_images_come_from_files_bytes_and_pictures_alike(tmp_path):
    (tmp_path / "red.png").write_bytes(file_of(RED))
    images = question(tmp_path / "red.png", file_of(RED), RED).load_images()
    assert [image.tobytes() for image in images] == [RED.tobytes()] * 3
    images[2].putpixel((0, 0), (0, 0, 255))
    assert RED.getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_with_an_orientation_comes_out_upright():
    lying = Image.new("RGB", (30, 40), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(file_of(lying, "JPEG", exif=exif)))
    assert question(turned).load_images()[0].size == (40, 30)


def test_an_image_that_changed_its_size_is_refused():
    with pytest.raises(DataError, match=r"question q1 has 41 x 30 pixels; the benchmark says 40 x 30"):
        question(Image.new("RGB", (41, 30))).load_images()


def test_an_image_that_is_gone_is_named_with_its_question(tmp_path):
    for read in (Question.load_images, Question.image_hashes):
        with pytest.raises(DataError, match="An image of question q1 cannot be read: there is no such file"):
            read(question(tmp_path / "gone.png"))


def test_an_image_is_known_by_its_content_and_not_by_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(file_of(RED))
    one, two, other = (question(image).image_hashes() for image in (tmp_path / "one", tmp_path / "two", RED))
    assert one == two != other
    assert question(RED.rotate(180, expand=True)).image_hashes() == other
    assert question(Image.new("RGB", (30, 40), "red")).image_hashes() != other


def test_triplets_of_one_image_become_questions_of_one_cluster():
    def triplet(id: str, image: Image.Image) -> Triplet:
        return Triplet(id, "Is it red?", "yes", image, (40, 30), (Box(0, 0, 9, 9),), "shapes_attribute", "test")

    asked = triplet("a", RED), triplet("b", RED.copy()), triplet("c", Image.new("RGB", (40, 30)))
    a, b, c = map(from_triplet, asked)
    assert a.cluster == b.cluster != c.cluster
    assert (a.id, a.text, a.gold, a.dataset) == ("a", "Is it red?", "yes", "shapes_attribute")
    assert a.boxes == (Box(0, 0, 9, 9),)
