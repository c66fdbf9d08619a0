"""Chat: hostile text stays text, boxes keep their colours, nothing is written over, no bad line ends a talk."""

import fcntl
import io
import json
import os
import pty
import re
import resource
import select
import struct
import sys
import termios
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.text import Text

from grit_lite.answer import parse, plain
from grit_lite.backends import open_backend
from grit_lite.boxes import PALETTE, Box
from grit_lite.chat import Reply, Session, ask, chat, chat_loop, chat_once, find_model
from grit_lite.chat.asking import summary
from grit_lite.chat.picture import half_blocks, save_as, save_picture, show_preview
from grit_lite.chat.prompt import typed_path
from grit_lite.chat.stream import StreamedText, WordWrap
from grit_lite.errors import DataError, ModelError, Stopped, UsageError
from grit_lite.recipe import Recipe
from grit_lite.tiny.build import save_untrained

QUESTION = "Is the red circle left of the blue square?"
HONEST = (
    '<think> {"bbox_2d": [18, 28, 45, 48], "label": "red circle"} and [72, 28, 99, 48]. </think>'
    "<rethink> It is. </rethink><answer> yes"
)
# The clipboard, the window's title, cleared screen, reversed direction, and what rich would take for markup.
HOSTILE = (
    "\x1b]52;c;aGk=\x07<think> \x1b]0;owned\x1b\\ [bold]x[/bold] \x1b[2J\x9b31m \u202e [1, 2, 30, 40] </think>"
    "<answer> no"
)
ESC = "\x1b"
# Colours, the cursor, the editing of a line: what rich and readline write.
OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|\?2004[lh]|[012]?K|[0-9]*[ACD])")
PHOTO = Image.new("RGB", (224, 112), (40, 80, 120))


# --- a model that writes what it was taught: random weights and an adapter, trained on one sentence


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("chat") / "base")


def teach(base_folder, text, run_folder):
    """A finished run folder whose adapter answers QUESTION about PHOTO with the text."""
    recipe = Recipe(name="taught", model=str(base_folder), max_pixels=112 * 112, max_completion_tokens=96)
    backend = open_backend(recipe)
    backend.attach_lora(recipe)
    inputs, labels = lesson(backend, text)
    weights = [weight for weight in backend.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=5e-3)
    for _ in range(70):
        backend.model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    backend.save_adapter(run_folder / "adapter")
    (run_folder / "recipe.yaml").write_text(recipe.text())
    (run_folder / "run.json").write_text(json.dumps({"status": "done", "finished": "2026-01-02T03:04:05+00:00"}))
    return run_folder


def lesson(backend, text):
    """Model inputs of the question followed by the text, and labels on the text only."""
    words = [{"type": "image"}, {"type": "text", "text": backend.spec.prompts.render(QUESTION)}]
    turns = [{"role": "user", "content": words}]
    prompt = backend.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    inputs = dict(backend.processor(images=[PHOTO], text=[prompt + text + "<|im_end|>"], return_tensors="pt"))
    count = len(backend.processor.tokenizer(text + "<|im_end|>")["input_ids"])
    labels = inputs["input_ids"].clone()
    labels[:, :-count] = -100
    return inputs, labels


@pytest.fixture(scope="session")
def run_folder(base_folder, tmp_path_factory):
    return teach(base_folder, HONEST, tmp_path_factory.mktemp("honest") / "runs" / "one")


@pytest.fixture(scope="session")
def backend(run_folder):
    chosen = find_model(str(run_folder))
    return open_backend(chosen.recipe, chosen.adapter)


def terminal(**options):
    """A console that writes into a string as it would on a true-colour terminal."""
    options = {"width": 100, "height": 40, "color_system": "truecolor", **options}
    return Console(file=io.StringIO(), force_terminal=True, highlight=False, _environ={}, **options)


def page(**options):
    """A console that writes into a string as into a file."""
    return Console(file=io.StringIO(), highlight=False, _environ={}, width=100, **options)


def written(console):
    return console.file.getvalue()


# --- which model


def test_the_newest_finished_run_is_chosen_and_said(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parents[1])
    chosen = find_model(None)
    assert (chosen.adapter, chosen.name) == (Path("runs/one/adapter"), "runs/one")
    assert chosen.why == "Using runs/one (newest finished run)."


def test_without_a_run_the_embedded_model_is_chosen_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = find_model(None)
    assert (chosen.recipe.model, chosen.adapter) == ("tiny", None)
    assert "no finished run below runs/" in chosen.why


def test_an_adapter_names_the_model_it_belongs_to(run_folder, base_folder):
    chosen = find_model(str(run_folder / "adapter"))
    assert (chosen.recipe.model, chosen.adapter) == (str(base_folder), run_folder / "adapter")


def test_a_plain_peft_adapter_is_taken_at_its_word(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    assert find_model(str(tmp_path)).recipe.name == "tiny"


@pytest.mark.parametrize("target", ["tiny", "Qwen/Qwen2.5-VL-3B-Instruct"])
def test_a_model_name_is_a_model_without_an_adapter(target):
    chosen = find_model(target)
    assert (chosen.recipe.model, chosen.adapter) == (target, None)


def test_a_model_folder_is_a_model_without_an_adapter(base_folder):
    assert find_model(str(base_folder)).recipe.model == str(base_folder)


@pytest.mark.parametrize("target", ["tinny", "./nothing", "a/b/c"])
def test_an_unknown_model_is_refused_by_name(target):
    with pytest.raises(ModelError, match=f"no model '{re.escape(target)}'"):
        find_model(target)


def test_the_server_that_sampled_for_a_run_is_not_asked_for_when_it_chats(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "recipe.yaml").write_text("model: tiny\nvllm_server: http://127.0.0.1:9\n")
    assert find_model(str(tmp_path)).recipe.vllm_server is None


def test_an_unfinished_run_is_refused_with_the_way_to_finish_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: tiny\n")
    with pytest.raises(ModelError, match=r"no adapter yet.*--resume --output"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("notes.txt", "", "holds no model"),
        ("adapter_config.json", "{}", "does not name its base model"),
        ("adapter_config.json", "[1]", "does not name its base model"),
        ("adapter_config.json", "{", "not readable JSON"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=reason):
        find_model(str(tmp_path))


# --- one question


def test_boxes_come_back_in_pixels_of_the_original_image(backend):
    pieces = []
    reply = ask(backend, PHOTO, QUESTION, max_new_tokens=96, on_text=pieces.append)
    assert reply.completion == "".join(pieces) == HONEST
    assert reply.answer.answer == "yes"
    # 224 × 112 is seen as 144 × 64: 18 · 224/144 = 28, 45 · 224/144 = 70; 28 · 112/64 = 49, 48 · 112/64 = 84
    assert reply.resized == (144, 64)
    assert reply.boxes == (pytest.approx((28, 49, 70, 84)), pytest.approx((112, 49, 154, 84)))


def test_without_its_adapter_the_model_answers_as_the_base(backend):
    reply = ask(backend, PHOTO, QUESTION, max_new_tokens=8, use_adapter=False)
    assert not HONEST.startswith(reply.completion)


def test_an_interrupted_base_answer_does_not_mix_with_the_next_one(backend):
    def press_ctrl_c(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(backend, PHOTO, QUESTION, max_new_tokens=400, use_adapter=False, on_text=press_ctrl_c)
    assert ask(backend, PHOTO, QUESTION, max_new_tokens=96).completion == HONEST


def test_a_question_cannot_smuggle_in_control_tokens(backend):
    with pytest.raises(UsageError, match=r"<\|image_pad\|>"):
        ask(backend, PHOTO, "What is <|image_pad|>?", max_new_tokens=8)


# --- the text as it streams


def stream(pieces):
    text = StreamedText()
    return [*(text.feed(piece) for piece in pieces), text.finish()]


def joined(pieces):
    return "".join(part.plain for part in stream(pieces))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_escape_sequence_split_over_pieces_never_comes_out(size):
    pieces = [HOSTILE[start : start + size] for start in range(0, len(HOSTILE), size)]
    assert joined(pieces) == plain(HOSTILE) == "<think>  [bold]x[/bold]   [1, 2, 30, 40] </think><answer> no"


@given(st.lists(st.text(alphabet="\x1b\x9b\x9d\x07\\[]();mJ05<>/think\n\u202e", max_size=6), max_size=20))
def test_what_streams_out_is_the_plain_text_however_it_is_cut(pieces):
    assert joined(pieces) == plain("".join(pieces))


def test_an_escape_string_without_an_end_is_swallowed():
    assert joined(["a", ESC + "]52;c;", "b" * 500]) == "a"


def test_a_box_comes_out_whole_and_in_the_colour_of_its_number():
    parts = [part for part in stream(["see [1, 2,", " 30, 40] and", " (5, 6, 70,", " 80) now"]) if part]
    assert [part.plain for part in parts] == ["see ", "[1, 2, 30, 40] and", " ", "(5, 6, 70, 80) now"]
    colours = [str(span.style) for part in parts for span in part.spans]
    assert colours == ["bold rgb({},{},{})".format(*PALETTE[0]), "bold rgb({},{},{})".format(*PALETTE[1])]


def test_an_open_bracket_does_not_hold_the_text_back_for_long():
    text = StreamedText()
    assert text.feed("[").plain == ""
    assert len(text.feed("a" * 121)) == 122


def test_text_past_the_reading_limit_is_still_shown():
    assert joined(["x" * 100_000, "[1, 2, 3, 4]"]).endswith("x[1, 2, 3, 4]")


def test_markup_in_the_text_is_printed_as_it_stands():
    console = terminal()
    for part in stream(["[bold]x[/bold] [link=http://x.y]z[/link]"]):
        console.print(part, end="")
    assert written(console) == "[bold]x[/bold] [link=http://x.y]z[/link]"


def test_lines_break_between_words_whatever_the_parts():
    wrap = WordWrap(10)
    parts = [wrap(Text(part)).plain for part in ["one two ", "three ", "fo", "ur\nfive six seven ", "a" * 12, " end"]]
    assert "".join(parts) == "one two \nthree four\nfive six \nseven \naaaaaaaaaaaa\n end"


@given(st.lists(st.text(alphabet="ab \n漢", max_size=9), max_size=9))
def test_line_breaks_are_all_that_wrapping_adds(parts):
    wrap = WordWrap(5)
    wrapped = "".join(wrap(Text(part)).plain for part in parts)
    assert wrapped.replace("\n", "") == "".join(parts).replace("\n", "")


def test_a_line_break_keeps_the_colours():
    wrapped = WordWrap(6)(Text.assemble("see ", ("[1, 2]", "red")))
    assert wrapped.plain == "see \n[1, 2]"
    assert all(wrapped.plain[span.start : span.end].strip() in {"[1,", "2]"} for span in wrapped.spans)


# --- what is said of a reply


def reply_of(text, boxes=(), seconds=0.5):
    return Reply("q", text, parse(text), boxes, (100, 100), seconds)


def test_the_summary_says_where_each_box_is():
    reply = reply_of(
        'at [1, 2, 30, 40] {"bbox_2d": [500, 1, 510, 9], "label": "cup"} <answer> yes </answer>',
        (Box(2, 4, 60, 80), Box(1000, 2, 1020, 18)),
    )
    assert summary(reply, (200, 200)).plain.splitlines() == [
        "Answer: yes",
        " 1  box  x 2 to 60, y 4 to 80",
        " 2  cup  x 1000 to 1020, y 2 to 18 (outside the image)",
    ]


def test_a_missing_answer_is_said():
    assert "wrote no <answer>" in summary(reply_of("so it goes on"), (9, 9)).plain


def test_an_answer_and_a_label_cannot_carry_escapes():
    text = '{"bbox_2d": [1, 2, 3, 4], "label": "a\x1b[2Jb"} <answer> \x1b]0;x\x07 yes\nno </answer>'
    shown = summary(reply_of(text, (Box(1, 2, 3, 4),)), (9, 9)).plain
    assert ESC not in shown
    assert "ab" in shown
    assert "yes no" in shown


# --- the picture


def test_a_picture_gets_a_new_name_beside_its_image(tmp_path):
    picture = Image.new("RGB", (4, 4))
    (tmp_path / "photo.boxes.png").write_bytes(b"precious")
    names = [save_picture(picture, tmp_path / "photo.jpg").path for _ in range(2)]
    assert names == [tmp_path / "photo.boxes-2.png", tmp_path / "photo.boxes-3.png"]
    assert (tmp_path / "photo.boxes.png").read_bytes() == b"precious"


def test_a_picture_goes_to_the_current_folder_when_its_own_is_closed(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    saved = save_picture(
        Image.new("RGB", (4, 4)), tmp_path / "file" / "photo.png"
    )  # a file is no folder, even for root
    assert (tmp_path / "photo.boxes.png").is_file()
    assert saved.sentence.startswith("Picture: photo.boxes.png in the current folder, because ")


def test_a_picture_that_cannot_be_saved_is_said(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    saved = save_picture(Image.new("RGB", (4, 4)), tmp_path / "gone" / "photo.png")
    assert saved.path is None
    assert "was not saved" in saved.sentence


def test_a_chosen_name_is_never_written_over(tmp_path):
    picture = Image.new("RGB", (4, 4))
    assert save_as(picture, tmp_path / "mine") == tmp_path / "mine.png"
    for name, reason in [("mine.png", "exists"), ("a.jpg", "ends in .png"), ("no/a.png", "cannot be written")]:
        with pytest.raises(UsageError, match=reason):
            save_as(picture, tmp_path / name)


def test_a_full_disk_leaves_no_half_picture(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(UsageError, match="cannot be written: File too large"):
            save_as(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# --- the preview


def cells(blocks):
    """[[(character, style), …], …]: the cells of each line."""
    lines = [[]]
    for segment in blocks.segments:
        lines[-1] += [(character, segment.style) for character in segment.text if character != "\n"]
        lines += [[]] if segment.text == "\n" else []
    return lines[:-1]


def test_half_blocks_show_two_pixels_a_cell_and_number_the_boxes():
    lines = cells(half_blocks(Image.new("RGB", (8, 8), (10, 20, 30)), (Box(2, 2, 6, 6),), columns=8, rows=4))
    text = ["".join(character for character, _ in line) for line in lines]
    assert text == ["▀" * 8, "▀▀1▀▀▀▀▀", "▀" * 8, "▀" * 8]
    style = lines[1][3][1]
    assert style.color.triplet == PALETTE[0]  # y = 2 is on the outline
    assert style.bgcolor.triplet == (10, 20, 30)  # y = 3 is inside


@pytest.mark.parametrize(("size", "room"), [((400, 100), (40, 5)), ((100, 400), (10, 20)), ((1, 900), (1, 20))])
def test_a_preview_keeps_its_proportions_within_the_room(size, room):
    lines = cells(half_blocks(Image.new("RGB", size), [Box(-5, -5, 2000, 2000)] * 12, columns=40, rows=20))
    assert {len(line) for line in lines} == {room[0]}
    assert len(lines) == room[1]


@pytest.mark.parametrize(
    ("console", "seen"),
    [
        (terminal(), True),
        (terminal(color_system="256"), True),
        (terminal(color_system="standard"), False),
        (terminal(no_color=True), False),
        (page(), False),
    ],
)
def test_a_preview_needs_a_terminal_with_colours(console, seen):
    image = Image.new("RGB", (8, 8))
    show_preview(console, image, (), lambda: image)
    assert ("▀" in written(console)) == seen


# --- one question on the command line


def once(backend, path, *, console, **options):
    session = Session(backend, console, max_new_tokens=96, **{"preview": False} | options.pop("session", {}))
    chat_once(session, path, PHOTO, QUESTION, model="runs/one", **options)


@pytest.fixture
def photo(tmp_path):
    """PHOTO in a folder of its own."""
    path = tmp_path / "my photo.png"
    PHOTO.save(path)
    return path


def test_one_question_prints_the_text_the_boxes_and_where_the_picture_is(backend, photo):
    console = page()
    once(backend, photo, console=console)
    assert written(console) == (
        f"{HONEST}\n\nAnswer: yes\n 1  red circle  x 28 to 70, y 49 to 84\n 2  box  x 112 to 154, y 49 to 84\n"
        f"Picture: {photo.with_name('my photo.boxes.png')}\n"
    )


def test_the_saved_picture_shows_the_boxes(backend, photo):
    once(backend, photo, console=page())
    picture = Image.open(photo.with_name("my photo.boxes.png"))
    assert {PALETTE[0], PALETTE[1]} <= {colour for _, colour in picture.getcolors(picture.width * picture.height)}


def test_json_is_one_object_and_nothing_else(backend, photo, capsys):
    console = page()
    once(backend, photo, console=console, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert written(console) == ""
    assert result.pop("seconds") > 0
    assert result == {
        "image": str(photo),
        "question": QUESTION,
        "model": "runs/one",
        "completion": HONEST,
        "think": '{"bbox_2d": [18, 28, 45, 48], "label": "red circle"} and [72, 28, 99, 48].',
        "rethink": "It is.",
        "answer": "yes",
        "boxes": [[28.0, 49.0, 70.0, 84.0], [112.0, 49.0, 154.0, 84.0]],
        "picture": str(photo.with_name("my photo.boxes.png")),
    }


def test_without_boxes_no_picture_is_saved_and_it_says_so(backend, photo):
    console = page()
    once(backend, photo, console=console, session={"use_adapter": False})
    assert "no boxes, so there is no picture" in written(console)
    assert list(photo.parent.iterdir()) == [photo]


class Interrupting(io.StringIO):
    """A terminal at which Ctrl-C is pressed as soon as the word appears."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def write(self, text):
        done = super().write(text)
        if self.word and self.word in self.getvalue():
            self.word = None
            raise KeyboardInterrupt
        return done


def test_ctrl_c_ends_a_single_question_with_the_exit_code_of_a_signal(backend, photo):
    with pytest.raises(Stopped) as stopped:
        once(backend, photo, console=Console(file=Interrupting("label")))
    assert stopped.value.exit_code == 130


# --- the command, before any model is loaded


@pytest.mark.parametrize(
    ("image", "question", "options", "reason"),
    [
        ("photo.png", None, {}, "no question"),
        ("photo.png", None, {"as_json": True}, "no question"),
        ("photo.png", " ", {}, "empty"),
        (None, "Is it?", {}, "no image"),
    ],
)
def test_an_incomplete_request_is_refused(image, question, options, reason):
    with pytest.raises(UsageError, match=reason):
        chat(image and Path(image), question, None, **options)


def png_header(width, height):
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    chunks = [(13, header), (0, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body)) for size, body in chunks
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"just text\n", "not a JPEG, PNG or WebP"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "truncated or damaged"),
        (png_header(30_000, 30_000), "30000 x 30000"),
    ],
)
def test_a_bad_image_is_refused_in_one_sentence(tmp_path, data, reason):
    path = tmp_path / "bad.jpg"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as error:
        chat(path, QUESTION, "tiny")
    assert error.value.exit_code == 3
    assert "bad.jpg" in str(error.value)


def test_the_command_answers_one_question(run_folder, photo, capsys):
    chat(photo, QUESTION, str(run_folder), preview=False)
    shown = capsys.readouterr()
    assert "Answer: yes" in shown.out
    assert shown.err.startswith(f"Using {run_folder}.")


# --- the conversation


def talk(backend, *lines, image=None, has_adapter=True, console=None):
    """What a conversation prints when these lines are typed; an exception among them is raised at the prompt."""
    console = console or page()
    script = iter(lines)

    def read_line(prompt):
        console.print(prompt, end="")
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    session = Session(backend, console, max_new_tokens=96, preview=False)
    chat_loop(session, image, has_adapter=has_adapter, read_line=read_line)
    return written(console)


def test_a_conversation_answers_and_goes_on(backend, photo):
    said = talk(backend, QUESTION, "", "   ", QUESTION, image=photo)
    assert said.count("Answer: yes") == 2
    assert said.endswith("> \n")  # Ctrl-D


def test_quit_leaves_without_reading_on(backend, photo):
    assert "Answer" not in talk(backend, "/quit", QUESTION, image=photo)


def test_without_an_image_it_asks_for_one_first(backend, photo):
    said = talk(backend, "nowhere.png", str(photo), QUESTION)
    assert said.count("image> ") == 2
    assert "nowhere.png': there is no such file" in said
    assert f"{photo}: 224 × 112 pixels" in said
    assert "Answer: yes" in said


@pytest.mark.parametrize("typed", ["'{}'", '"{}"', "{}", "file://{}"])
def test_a_path_may_be_quoted_bare_or_an_address(backend, photo, typed):
    assert "224 × 112 pixels" in talk(backend, "/image " + typed.format(photo))


def test_a_dropped_path_has_its_blanks_escaped(backend, photo):
    assert "224 × 112 pixels" in talk(backend, str(photo).replace(" ", "\\ ") + " ", image=photo)


def test_quotes_in_a_name_belong_to_it(tmp_path):
    path = tmp_path / "my 'own' photo.png"
    assert typed_path(str(path)) == tmp_path / "my own photo.png"
    path.touch()
    assert typed_path(str(path)) == path
    assert typed_path("it's.png") == Path("it's.png")


def test_a_home_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    assert typed_path("~/a.png") == Path("/nowhere/a.png")


def test_a_bad_image_is_a_line_and_the_old_image_stays(backend, photo):
    said = talk(backend, "/image missing.png", "/image", "/image " + "x" * 5000, QUESTION, image=photo)
    assert said.count("error: ") == 3
    assert "Answer: yes" in said


def test_an_unknown_command_suggests_the_nearest(backend, photo):
    said = talk(backend, "/imgae x.png", "/xyzzy", image=photo)
    assert "There is no command /imgae. Did you mean /image? /help lists them all." in said
    assert "There is no command /xyzzy. /help lists them all." in said


def test_help_lists_the_commands_and_says_that_questions_stand_alone(backend):
    said = talk(backend, "/help")
    assert all(f"{command} " in said for command in ("/image", "/save", "/base", "/help", "/quit"))
    assert "Each question stands alone" in said


def test_save_writes_the_last_picture(backend, photo):
    said = talk(backend, "/save", QUESTION, "/save", f"/save '{photo.parent}/an other'", "/save", image=photo)
    assert "error: There is no picture to save yet" in said
    names = {path.name for path in photo.parent.iterdir()}
    assert names == {"my photo.png", "my photo.boxes.png", "an other.png", "my photo.boxes-2.png"}


def test_base_switches_to_the_base_model_and_back(backend, photo):
    said = talk(backend, "/base", QUESTION, "/base", QUESTION, image=photo)
    assert "The base model answers from here on." in said
    assert "The tuned model answers from here on." in said
    assert said.count("Answer: yes") == 1


def test_there_is_nothing_to_switch_without_an_adapter(backend):
    assert "only the base model" in talk(backend, "/base", has_adapter=False)


def test_ctrl_c_at_the_prompt_says_how_to_leave(backend, photo):
    said = talk(backend, KeyboardInterrupt(), QUESTION, image=photo)
    assert "Ctrl-D or /quit leaves." in said
    assert "Answer: yes" in said


def test_ctrl_c_stops_the_answer_and_not_the_program(backend, photo):
    said = talk(backend, QUESTION, QUESTION, image=photo, console=Console(file=Interrupting("label"), width=100))
    assert "Stopped." in said
    assert said.count("Answer: yes") == 1


def test_lines_that_cannot_be_paths_are_questions(backend, photo):
    said = talk(backend, "\0.png", image=photo)
    assert "error" not in said


class Typed(io.StringIO):
    """A keyboard and a screen, as far as anyone can tell who only asks."""

    def isatty(self):
        return True


def test_without_a_question_a_terminal_becomes_a_conversation(run_folder, photo, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Typed(f"{photo}\n{QUESTION}\n/quit\n"))
    monkeypatch.setattr(sys, "stdout", Typed())
    chat(None, None, str(run_folder))
    said = OURS.sub("", sys.stdout.getvalue())
    assert said.count("image> ") == 1
    assert "Answer: yes" in said


# --- in a real terminal


def on_terminal(command, dialogue, cwd, seconds=240):
    """Runs a command on a pseudo-terminal. dialogue: (wait for this text, then type that). (output, exit code).

    The terminal has 100 × 40 cells of 10 × 20 pixels.
    """
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", OMP_NUM_THREADS="1")
        os.environ.pop("NO_COLOR", None)
        os.execv(command[0], command)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 1000, 800))
    output, end, steps = b"", time.monotonic() + seconds, list(dialogue)
    while time.monotonic() < end:
        seen = output.decode(errors="replace")
        if steps and (steps[0][0] in seen or steps[0][0] in OURS.sub("", seen)):
            os.write(descriptor, steps.pop(0)[1])
        if select.select([descriptor], [], [], 0.05)[0]:
            try:
                output += os.read(descriptor, 65536)
            except OSError:  # the other end is closed
                break
    os.close(descriptor)
    return output.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_hostile_completion_steers_no_terminal(base_folder, photo, tmp_path):
    run = teach(base_folder, HOSTILE, tmp_path / "run")
    dialogue = [("> ", QUESTION.encode() + b"\n"), ("Answer: no", b"/quit\n")]
    command = [sys.executable, "-c", "from grit_lite.cli import main; main()", "chat", str(photo), "--model", str(run)]
    output, code = on_terminal(command, dialogue, tmp_path)
    talk = OURS.sub("", output.partition("Ask a question")[2])  # before it, textual-image asks the terminal what it is
    assert code == 0
    assert ESC not in talk, "an escape sequence that is not ours came through"
    assert "\x07" not in talk
    assert "[bold]x[/bold]" in talk
    assert "▀" in talk  # the preview


SHOW = """
from PIL import Image
from rich.console import Console
from rich.text import Text
from grit_lite.chat.picture import show_preview
image = Image.new("RGB", (64, 64), (200, 0, 0))
show_preview(Console(), image, (), lambda: image)
"""


def test_a_terminal_that_takes_pixels_gets_pixels(tmp_path):
    pytest.importorskip("textual_image")
    dialogue = [("\x1b[c", b"\x1b[?62;4c")]  # what a terminal that knows sixels (4) says when it is asked what it is
    output, code = on_terminal([sys.executable, "-c", SHOW], dialogue, tmp_path)
    assert code == 0
    assert "\x1bP" in output, "no sixel picture came"
    assert "▀" not in output
