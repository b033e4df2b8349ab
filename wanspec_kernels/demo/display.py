"""What the demo shows: text as it is committed, each token in the colour of who drafted it."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wanspec_kernels.demo.run import HOME_NAME, Observer
from wanspec_kernels.text_stream import TextStream

REMOTE_STYLES = ("black on green", "black on cyan", "black on yellow", "black on magenta")
HOME_STYLE = "black on white"
PROMPT_LINES = 6


class Terminal(Observer):
    """Streams to a console; `tokenizer` is the target's."""

    def __init__(self, console: Console, tokenizer: Any) -> None:
        self._console = console
        self._stream = TextStream(tokenizer)
        self._style = ""  # of the last token

    def progress(self, text: str) -> None:
        self._console.print(Text(text, "dim"))

    def prompt(self, name: str, text: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{name}")
        shown = text.splitlines()[-PROMPT_LINES:]
        self._console.print(Text("\n".join(shown), "dim"), end="")

    def tokens(self, token_ids: Sequence[int], drafted_by: Sequence[str | None]) -> None:
        for token, drafter in zip(token_ids, drafted_by, strict=True):
            self._style = style_of(drafter)
            self._print(self._stream.push(token))

    def text_ended(self) -> None:
        self._print(self._stream.flush())

    def _print(self, text: str) -> None:
        self._console.print(Text(text, self._style), end="", soft_wrap=True)


class Quiet(Observer):
    """Progress only, as plain lines; for `--json`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._prompts = 0

    def progress(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def prompt(self, name: str, text: str) -> None:
        self._prompts += 1
        self.progress(f"prompt {self._prompts}: {name}")


def style_of(drafter: str | None) -> str:
    if drafter is None:
        return ""
    if drafter == HOME_NAME:
        return HOME_STYLE
    number = int(drafter.rpartition("-")[2])
    return REMOTE_STYLES[(number - 1) % len(REMOTE_STYLES)]


def legend(num_drafters: int) -> Text:
    text = Text("accepted drafts: ")
    for number in range(1, num_drafters + 1):
        name = f"drafter-{number}"
        text.append(f" {name} ", style_of(name)).append(" ")
    return text.append(" at home ", HOME_STYLE).append("   the target's own tokens are plain")


def table(report: dict[str, Any], target_pass_ms: float, rule: str) -> Table:
    """The closing table of a report of `demo.run`."""
    rows = Table(show_header=False, title="wanspec demo", title_justify="left")
    rows.add_column(style="bold")
    rows.add_column()
    round_trips = ", ".join("?" if r is None else f"{r:.0f}" for r in report["round_trip_ms"])
    drafts = ", ".join(f"{n} {kind}" for kind, n in report["drafts"].items() if n)
    same = "yes, every token" if report["identical_to_target_alone"] else "no"
    if rule == "rejection" and not report["identical_to_target_alone"]:
        same = "no: `rejection` keeps the distribution, not the text"
    rows.add_row("tokens", f"{report['tokens']} in {report['target_passes']} target passes")
    rows.add_row("tokens per target pass", f"{report['tokens_per_target_pass']:.2f}")
    rows.add_row("target pass", f"paced to {target_pass_ms:g} ms, as a 70B model's")
    rows.add_row("time", f"{report['seconds']:.2f} s; alone {report['seconds_target_alone']:.2f} s")
    rows.add_row("speed-up over the target alone", f"{report['speedup_over_target_alone']:.2f}×")
    rows.add_row("identical to the target alone", same)
    rows.add_row("drafters", f"{report['drafters']}, round trips {round_trips} ms")
    rows.add_row("drafts received", drafts or "none")
    rows.add_row(
        "accepted drafts",
        f"{report['remote_tokens_accepted']} remote, {report['home_tokens_accepted']} home",
    )
    rows.add_row("draft passes at home", str(report["local_draft_passes"]))
    rows.add_row("on the wire", f"{report['wire_bytes_per_token']:.0f} bytes a token")
    return rows
