"""`wanspec`: the command line of the serving side."""

import typer

from wanspec_kernels.command_line import Command, Group
from wanspec_kernels.commands import probe
from wanspec_kernels.commands.demo import demo
from wanspec_kernels.commands.generate import generate
from wanspec_kernels.commands.keygen import keygen
from wanspec_kernels.commands.plan import plan
from wanspec_kernels.commands.simulate import simulate
from wanspec_kernels.commands.trace import trace

app = typer.Typer(
    cls=Group,
    help="""Speculative decoding with drafters across the internet.

    A large model, the target, writes a text. Small draft models propose its next tokens, and the
    target verifies many of them in one pass, so the text comes faster and stays the target's own.
    Drafters run on other machines and dial in; one more may run at home, beside the target.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (demo, generate, keygen, simulate, trace):
    app.command(cls=Command)(command)
app.add_typer(probe.app, name="probe")
app.command(cls=Command)(plan)


if __name__ == "__main__":
    app()
