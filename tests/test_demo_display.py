"""What the demo shows on a terminal, off one, and beside `--json`."""

from io import StringIO

import pytest
from rich.console import Console

from wanspec_kernels.demo.display import REMOTE_STYLES, Plain, Quiet, style_of
from wanspec_kernels.demo.observer import HOME_NAME, Prompt
from wanspec_kernels.demo.panes import Panes
from wanspec_kernels.engine.statistics import Statistics

PROMPTS = [Prompt(f"name {n}", f"def function_{n}(x):\n", n) for n in range(6)]


def console(width=120, height=30, terminal=True):
    colours = "standard" if terminal else None
    return Console(
        file=StringIO(), width=width, height=height, force_terminal=terminal, color_system=colours
    )


def show(observer, rounds=12):
    """All texts, a token each in turn."""
    observer.begin(PROMPTS)
    for i in range(rounds):
        for number in range(len(PROMPTS)):
            drafted_by = (None, HOME_NAME, "drafter-1")[i % 3]
            observer.token(number, f"word{number}_{i}\n", drafted_by)
    for number in range(len(PROMPTS)):
        observer.text_ended(number, Statistics(tokens=rounds, target_passes=4))
    observer.end()


@pytest.mark.parametrize(("width", "height", "shown"), [(120, 30, 6), (120, 12, 6), (50, 12, 2)])
def test_panes_show_the_end_of_each_text_for_which_there_is_room(width, height, shown):
    screen = console(width, height)
    show(Panes(screen))
    said = screen.file.getvalue()
    last = said[said.rindex("name 0") :]  # the screen as it was left
    assert len(last.removesuffix("\x1b[?25h").splitlines()) == height - 1
    for number in range(len(PROMPTS)):
        assert (f"word{number}_11" in last) == (number < shown)
        assert (f"name {number}" in last) == (number < shown)
    assert "12 tokens in 4 target passes" in last


def test_tokens_have_their_drafters_colour():
    screen = console()
    show(Panes(screen))
    said = screen.file.getvalue()
    black_on = {"green": "\x1b[30;42m", "white": "\x1b[30;47m"}
    assert f"{black_on['green']}word0_11" in said
    assert f"{black_on['white']}word0_10" in said
    assert style_of("drafter-1") == REMOTE_STYLES[0]
    assert style_of(None) == ""


def test_without_a_terminal_each_text_is_written_once():
    out = console(terminal=False)
    show(Plain(out))
    said = out.file.getvalue()
    for number in range(len(PROMPTS)):
        assert said.count(f"def function_{number}(x):\nword{number}_0\n") == 1
        assert said.count(f"word{number}_11") == 1
        assert said.count(f"name {number}: 12 tokens in 4 target passes\n") == 1
    assert "\x1b" not in said


def test_progress_beside_json():
    out = console(terminal=False)
    show(Quiet(out, max_tokens=12))
    lines = out.file.getvalue().splitlines()
    assert lines[:6] == [f"prompt {n}: name {n - 1}" for n in range(1, 7)]
    assert lines[6:] == [f"{n} of at most 72 tokens" for n in (18, 36, 54, 72)]
