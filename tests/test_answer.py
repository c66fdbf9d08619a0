import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_lite.answer import (
    GRIT_PROMPT,
    INSTRUCTION,
    MAX_BOXES,
    MAX_CHARS,
    PromptTemplate,
    has_valid_format,
    ordered_pairs,
    parse,
    plain,
)

calm = settings(deadline=None)  # another job on the machine may make one example slow

GOOD = (
    "<think> The kite sits at [12, 30, 88, 97] over the dog at [40, 120, 200, 260]. </think>\n"
    "<rethink> The kite box ends before the dog box starts. </rethink>\n<answer> Yes"
)


def boxes(text):
    return list(parse(text).boxes)


# prompts


def test_the_grounded_prompt_is_grits_to_the_letter():
    assert GRIT_PROMPT.render("Is it red?") == (
        "\nQuestion: Is it red? First, think between <think> and </think> while output necessary coordinates needed to "
        "answer the question in JSON with key 'bbox_2d'. Then, based on the thinking contents and coordinates, rethink "
        "between <rethink> </rethink> and then answer the question after <answer>.\n"
    )
    assert GRIT_PROMPT.render("Is it red?", style="direct") == "\nQuestion: Is it red?"


def test_a_question_with_braces_stays_as_it_is():
    template = PromptTemplate(grounded="Q: {question} {other}", direct="{question}")
    assert template.render("{x} %s {0}") == "Q: {x} %s {0} {other}"


# parts


def test_a_well_formed_completion_comes_apart():
    answer = parse(GOOD)
    assert answer.think == "The kite sits at [12, 30, 88, 97] over the dog at [40, 120, 200, 260]."
    assert answer.rethink == "The kite box ends before the dog box starts."
    assert answer.answer == "Yes"
    assert answer.chain == GOOD[: GOOD.index("<answer>")]
    assert answer.boxes == ((12, 30, 88, 97), (40, 120, 200, 260))
    assert has_valid_format(answer)


def test_text_without_tags_is_all_chain_and_no_answer():
    answer = parse("The kite is over the dog.")
    assert (answer.think, answer.rethink, answer.answer) == (None, None, None)
    assert answer.chain == "The kite is over the dog."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> yes </answer>", "yes"),
        ("<answer> yes", "yes"),
        ("<answer>yes</answer> and more", "yes"),
        ("<answer>no</answer> wait <answer>yes</answer>", "yes"),
        ("<answer> yes <answer> no", "no"),
        ("<answer>yes</answer> <answer>", "yes"),  # cut off before it said anything
        ("<answer> yes <answer>", "yes"),
        ("<answer> yes </answer> <answer> \n", "yes"),
        ("<answer>", None),
        ("<answer></answer>", ""),
        ("<Answer> yes", None),
        ("no </answer> yes", None),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer> yes </ans", "yes"),  # cut off inside the closing tag
        ("<answer>yes</answer", "yes"),
        ("<answer>no</answer> <answer> </answ", "no"),
        ("<answer> a < b", "a < b"),
    ],
)
def test_the_last_complete_answer_counts(text, expected):
    assert parse(text).answer == expected


def test_an_echoed_prompt_is_no_answer_and_no_chain():
    echo = parse(GRIT_PROMPT.render("Is it [1, 2, 30, 40]?"))
    assert (echo.answer, echo.think, echo.rethink, echo.chain_boxes) == (None, None, None, ())
    assert not has_valid_format(echo)


def test_what_follows_an_echoed_prompt_is_read_as_if_alone():
    echoed = parse(GRIT_PROMPT.render("Is the kite above?") + GOOD)
    alone = parse(GOOD)
    assert (echoed.think, echoed.rethink, echoed.answer) == (alone.think, alone.rethink, alone.answer)
    assert echoed.boxes == alone.boxes
    assert has_valid_format(echoed)


def test_a_prompt_echoed_in_other_words_is_not_the_answer():
    answer = parse("think between <think> and </think>, rethink, then answer after <answer>.\n" + GOOD)
    assert answer.answer == "Yes"
    assert answer.think is not None
    assert answer.think.startswith("The kite sits")


def test_the_last_of_several_thoughts_is_shown():
    answer = parse("<think> a </think> <think> b </think> <rethink> c </rethink> <answer> d")
    assert (answer.think, answer.rethink) == ("b", "c")


def test_of_nested_thoughts_the_inner_one_is_shown():
    assert parse("<think> a <think> b </think> c </think> <answer> d").think == "b"


def test_a_box_in_the_answer_is_written_but_not_in_the_chain():
    answer = parse("<think> at [1, 2, 30, 40] </think> <answer> [5, 6, 70, 80]")
    assert answer.boxes == ((1, 2, 30, 40), (5, 6, 70, 80))
    assert [box.numbers for box in answer.chain_boxes] == [(1, 2, 30, 40)]


# valid format


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("<think>a</think><rethink>b</rethink><answer>c", (True, True)),
        ("<think>a</think> so <rethink>b</rethink> hence <answer>c", (True, True)),
        ("<think>a</think><answer>c", (True, False)),
        ("<rethink>b</rethink><answer>c", (False, False)),
        ("<rethink>b</rethink><think>a</think><answer>c", (True, False)),  # wrong order
        ("<think> </think><rethink>b</rethink><answer>c", (False, False)),  # empty
        ("<think>a</think><rethink>\n</rethink><answer>c", (True, False)),
        ("<think>a</think><think>a</think><rethink>b</rethink><answer>c", (False, False)),  # twice
        ("<think>a<think></think><rethink>b</rethink><answer>c", (False, False)),
        ("</think>a<think><rethink>b</rethink><answer>c", (False, False)),  # closed before it opens
        ("<think>a<rethink></think>b</rethink><answer>c", (True, False)),  # interleaved
        ("<answer>c</answer><think>a</think><rethink>b</rethink>", (False, False)),  # behind the answer
        ("<think>a</think><rethink>b</rethink><answer>c</answer><think>a</think>", (False, False)),  # again
        ("<think>a</think><rethink>b", (True, False)),  # cut off
        ("<THINK>a</THINK><rethink>b</rethink><answer>c", (False, False)),
    ],
)
def test_pairs_are_one_each_with_text_and_in_order(text, pairs):
    assert ordered_pairs(parse(text)) == pairs


def test_an_answer_before_the_thinking_has_no_valid_format():
    whole = "<think> a </think> <rethink> b </rethink> <answer> 2"
    assert has_valid_format(parse(whole))
    assert not has_valid_format(parse("<answer> " + whole))
    assert not has_valid_format(parse("<think> a </think> <answer> 1 <rethink> b </rethink> <answer> 2"))
    assert has_valid_format(parse(GRIT_PROMPT.grounded + whole))  # the echoed prompt's own <answer> is not one


def test_valid_format_needs_an_answer_with_text():
    chain = "<think>a</think><rethink>b</rethink>"
    assert has_valid_format(parse(chain + "<answer> yes"))
    assert not has_valid_format(parse(chain + "<answer> </answer>"))
    assert not has_valid_format(parse(chain))


# what a written box is


@pytest.mark.parametrize(
    "text",
    [
        "at [10, 20, 30, 40].",
        "at (10, 20, 30, 40)",
        "at [10,20,30,40]",
        "at [ 10 , 20 ,\n 30 , 40 ]",
        "at [10.0, 20.00, 30, 40]",
        '{"bbox_2d": [10, 20, 30, 40]}',
        "'bbox_2d': (10, 20, 30, 40)",
        "bbox_2d: 10, 20, 30, 40",
        "bbox_2d_3: 10, 20, 30, 40.",
        'bbox_2d = "10, 20, 30, 40"',
        "［１０，２０，３０，４０］",  # full width, as written in Chinese
        "在（10，20，30，40）处",
        "[[10, 20, 30, 40]]",
        "([10, 20, 30, 40])",
    ],
)
def test_four_numbers_in_brackets_or_under_the_key_are_a_box(text):
    assert boxes(text) == [(10, 20, 30, 40)]


@pytest.mark.parametrize(
    "text",
    [
        "10, 20, 30, 40",  # GRIT's own pattern takes it
        "counts are 3, 4, 5, 6 by shelf",
        "shelves (1, 2, 3, 4) are full",  # counting up
        "on 2024-05-17, 12:30",
        "[2024-05-17, 1, 2, 3]",
        "(17.05.2024, 1, 2, 3)",
        "[10, 20, 30]",
        "[10, 20, 30, 40, 50]",
        "[10, 20, 30, 40, 50, 60, 70, 80]",
        "bbox_2d: 10, 20, 30, 40, 50",
        "bbox_2d: 10, 20, 30",
        "(10, 20), (30, 40)",
        "[10 20 30 40]",
        "[10, 20, 30, 40)",
        "[10, 20, 30, 40px]",
        "[NaN, 1, 2, 3]",
        "[Infinity, 1, 2, 3]",
        "[1e999, 1, 2, 3]",
        "[0x10, 1, 2, 3]",
        "[10, 20, 30, " + "4" * 5000 + "]",
        "[١٠, ٢٠, ٣٠, ٤٠]",
        "[]",
        "[,,,]",
        "192.168.0.1",
    ],
)
def test_these_are_not_boxes(text):
    assert boxes(text) == []


def test_numbers_are_kept_as_written_even_if_no_image_could_hold_them():
    assert boxes("[-9, 30, 4.25, 5]") == [(-9, 30, 4.25, 5)]


def test_four_in_square_brackets_may_count_up_by_one():
    assert boxes("a box [1, 2, 3, 4] here") == [(1, 2, 3, 4)]


def test_a_nested_list_holds_several_boxes():
    assert boxes("[[100, 200, 300, 400], [500, 200, 700, 400]]") == [(100, 200, 300, 400), (500, 200, 700, 400)]


def test_a_written_box_knows_where_it_stands():
    text = "the dog [10, 20, 30, 40] and bbox_2d: 1, 2, 30, 40!"
    assert [text[box.start : box.end] for box in parse(text).written] == ["[10, 20, 30, 40]", "bbox_2d: 1, 2, 30, 40"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"bbox_2d": [1, 2, 30, 40], "label": "red kite"}', ["red kite"]),
        ('[{"label": "kite", "bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [1, 2, 30, 41]}]', ["kite", None]),
        ("<ref>dog</ref> <box>[[1, 2, 30, 40], [1, 2, 30, 41]]</box>", ["dog", None]),
        ("the dog [1, 2, 30, 40]", [None]),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "' + "x" * 200 + '"}', [None]),
    ],
)
def test_a_box_has_the_label_written_beside_it(text, labels):
    assert [box.label for box in parse(text).written] == labels


def test_boxes_past_the_limit_are_not_read():
    assert len(boxes("[1, 2, 30, 40]" * (MAX_BOXES + 5))) == MAX_BOXES


@given(
    st.tuples(*[st.integers(-999_999, 999_999)] * 4),
    st.sampled_from(["[{}, {}, {}, {}]", '{{"bbox_2d": [{},{},{},{}]}}']),
)
@calm
def test_any_integers_written_as_a_box_are_read_back(numbers, form):
    assert boxes(form.format(*numbers)) == [numbers]


# hostile text

HOSTILE = {
    "a megabyte": "x" * 1_000_000,
    "brackets": "[" * 200_000,
    "round brackets and blanks": "( " * 100_000,
    "5,000 digits": "[" + "9" * 5000 + ", 1, 2, 3]",
    "commas": "1," * 100_000,
    "unfinished lists": "[1, 2, 3, " * 20_000,
    "a list of blanks": "[1," + " " * 200_000,
    "not numbers": "[NaN, Infinity, -Infinity, 1e999]" * 3000,
    "lone surrogates": "\ud800\udfff" * 50_000,
    "fake tags": "<think><answer></think></answer><rethink>" * 3000,
    "answers": "<answer>" * 30_000,
    "answers with blanks": "<answer> " * 30_000,
    "closings": "</answer></think>" * 10_000,
    "keys": "bbox_2d:" * 30_000,
    "keys and blanks": ("bbox_2d" + " " * 50) * 4000,
    "labels": '[1, 2, 30, 40], "label": "' * 5000,
    "boxes": "[0, 0, 9, 9]" * 20_000,
    "escapes": "\x1b]0;" * 50_000,
    "nulls": "\x00" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_read_and_cleaned_in_a_moment(name):
    started = time.process_time()
    answer = parse(HOSTILE[name])
    has_valid_format(answer)
    plain(HOSTILE[name])
    assert time.process_time() - started < 2.0  # some 20 ms each on a quiet machine; quadratic time takes minutes
    assert len(answer.text) <= MAX_CHARS


@given(st.text(st.characters(codec=None), max_size=300))
@calm
def test_any_text_can_be_read(text):
    answer = parse(text)
    assert answer.chain in text
    for box in answer.written:
        assert text[box.start : box.end]


pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<rethink>",
        "</rethink>",
        "<answer>",
        "</answer>",
        " a ",
        "[1, 2, 30, 40]",
        INSTRUCTION,
        " ",
    ]
)


@given(st.lists(pieces, max_size=14).map("".join))
@calm
def test_a_valid_format_has_all_three_parts_and_they_come_from_the_text(text):
    answer = parse(text)
    assert all(part is None or part in text for part in (answer.think, answer.rethink, answer.answer))
    if has_valid_format(answer):
        assert answer.think
        assert answer.rethink
        assert answer.answer
        assert ordered_pairs(answer) == (True, True)


# plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;aGk=\x1b\\x", "x"),  # writes the clipboard
        ("\x1b]8;;http://e.vil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x\x1b_hidden\x9cy", "xy"),
        ("\x9b31mx\x9d0;t\x07y", "xy"),  # the 8-bit forms
        ("\x1bc\x1b(0x", "x"),
        ("\x1b]0;never ended\nnext line", "\nnext line"),
        ("\u202egnp.exe\u202c \u2066x\u2069", "gnp.exe x"),
        ("a\rb\x08c\x7fd\x00e", "abcde"),
        ("tab\tand\nnewline stay", "tab\tand\nnewline stay"),
        ("\ud800", "\ufffd"),
        ("naïve 漢字 🪁 [1, 2, 3, 4]", "naïve 漢字 🪁 [1, 2, 3, 4]"),
    ],
)
def test_plain_text_cannot_steer_a_terminal(text, expected):
    assert plain(text) == expected


@given(st.text(st.sampled_from("\x1b\x9b\x9d[]P_\\;0m\x07\x9c\u202ea\n"), max_size=40))
@calm
def test_nothing_is_left_for_a_second_cleaning(text):
    cleaned = plain(text)
    assert plain(cleaned) == cleaned
    assert not set(cleaned) & set("\x1b\x9b\x9d\x07\x9c\u202e")
