"""Options that several commands have, each explained once."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wanspec_kernels.command_line import choice, fail, number, whole

if TYPE_CHECKING:
    from wanspec_kernels.wire.sampling import Sampling


class Rule(StrEnum):
    match = "match"
    rejection = "rejection"


RuleOption = Annotated[
    Rule,
    choice(
        "The rule by which the target accepts a draft. `match` keeps the very text that the target "
        "alone would write, whatever drafters send. `rejection` keeps its distribution, and only "
        "with drafters that you trust.",
        Rule,
        "RULE",
    ),
]
Temperature = Annotated[
    float,
    number(
        "How freely tokens are sampled: 0 always takes the likeliest, else it is 0.01 or more.",
        0,
        100,
    ),
]
TopK = Annotated[
    int,
    whole("Only the k likeliest tokens may be sampled; 0 turns this off.", 0, (1 << 31) - 1),
]
TopP = Annotated[
    float,
    number(
        "Only the likeliest tokens that together have this probability may be sampled; 1 turns "
        "this off.",
        above=0,
        high=1,
    ),
]
MinP = Annotated[
    float,
    number(
        "Only tokens at least this share as likely as the likeliest may be sampled; 0 turns this "
        "off.",
        0,
        1,
    ),
]
Seed = Annotated[
    int,
    whole("The same prompt and seed give the same text.", -(1 << 63), (1 << 63) - 1),
]
TargetOption = Annotated[
    str,
    typer.Option(
        help="The target, the large model whose text this is: a folder, the name of a hub model "
        "or bundled:target."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="Where the models run: cpu, cuda or cuda:N; auto takes a GPU if it can."),
]


def sampling_of(**values: Any) -> "Sampling":
    """What the options of these names say; what is out of range is refused by its option."""
    from wanspec_kernels.wire.sampling import Sampling

    try:
        return Sampling(**values)
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        fail(f"--{name.replace('_', '-')}:{rest}")
