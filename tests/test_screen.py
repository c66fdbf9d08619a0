"""What a person watches: curves that say what happened, one line elsewhere, and nothing a model can smuggle in."""

import io
import json

from rich.console import Console

from grit_lite.boxes import PALETTE
from grit_lite.screen import JsonLines, LiveScreen, PlainLines, coloured, sparkline

METRICS = {
    "step": 3,
    "reward": 1.25,
    "reward/tags": 0.5,
    "reward/judge": None,
    "groups_that_teach": 0.75,
    "valid_format": 0.5,
    "completion_tokens": 40.0,
    "kl": 0.01,
    "loss": 0.0,
    "grad_norm": 0.3,
    "lr": 1e-3,
}
TIMING = {"seconds": 2.0, "tokens_per_second": 640.0, "memory_mib": 1234.0}
SAMPLE = {
    "question": "How many?",
    "gold": "2",
    "completion": "<think> [1, 2, 30, 40] [50, 60, 70, 80] </think> <answer> 2",
    "scores": {"tags": 0.5, "total": 1.25},
}


def console():
    return Console(file=io.StringIO(), force_terminal=True, width=110, color_system="truecolor")


def test_a_sparkline_goes_from_the_lowest_block_to_the_highest():
    assert sparkline([0.0, 0.5, 1.0]).plain == "▁▄▇"


def test_a_sparkline_of_nothing_but_zeros_is_flat():
    assert sparkline([0.0, 0.0]).plain == "▁▁"


def test_an_unknown_value_is_a_gap():
    assert sparkline([1.0, None, 1.0]).plain == "▇ ▇"


def test_a_long_history_is_drawn_as_means_of_stretches():
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2).plain == "▁▇"


def test_a_plain_line_says_step_reward_terms_and_cost():
    output = console()
    PlainLines(output, steps=60).step(METRICS, TIMING, [SAMPLE])
    line = output.file.getvalue()
    for part in ("step  3/60", "reward 1.25", "tags 0.50", "judge –", "teach 75%", "tokens 40", "2.0 s"):
        assert part in line


def test_json_lines_are_one_object_a_line(capsys):
    screen = JsonLines()
    screen.step(METRICS, TIMING, [SAMPLE])
    screen.note("done")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["step", "note"]
    assert events[0]["reward"] == 1.25


def test_the_live_screen_shows_curves_cost_and_a_sample():
    output = console()
    screen = LiveScreen(output, "grit-lite tiny", steps=60)
    screen.step(METRICS, TIMING, [SAMPLE])
    screen.note("Resuming after step 2.")
    output.print(screen.render())
    shown = output.file.getvalue()
    for part in ("step 3/60", "groups that teach", "640", "1,234 MiB", "How many?", "Resuming after step 2."):
        assert part in shown


def test_a_box_has_the_colour_that_the_picture_gives_it():
    text = coloured(SAMPLE["completion"])
    colours = [span.style for span in text.spans]
    assert colours == [f"bold rgb({r},{g},{b})" for r, g, b in PALETTE[:2]]
    assert text.plain[text.spans[0].start : text.spans[0].end] == "[1, 2, 30, 40]"


def test_model_text_brings_no_escapes_and_no_markup_to_the_terminal():
    hostile = "\x1b]52;c;aGk=\x07\x1b[31m[bold]red[/bold]\u202e [link=x]y[/link]"
    output = console()
    screen = LiveScreen(output, "t", steps=1)
    screen.step(METRICS, TIMING, [{**SAMPLE, "completion": hostile, "question": hostile}])
    output.print(screen.render())
    shown = output.file.getvalue()
    assert "\x1b]52" not in shown
    assert "\u202e" not in shown
    assert "[bold]red[/bold]" in shown
