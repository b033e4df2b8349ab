"""Machines by name: pass times as they were measured."""

from wanspec_kernels.simulation.scenario import Machine

# `docs/target-pass.md`: ms of a pass by rows, and of a token of the requests' contexts.
H200_8B = Machine(
    5.35,
    measured=(
        *((1, 5.35), (8, 5.5), (16, 5.65), (64, 6.17), (128, 6.36)),
        *((512, 14.1), (1024, 25.4), (2048, 51.0)),
    ),
    context_ms=3.1e-5,
)


def draft_of(target: Machine, pass_ms: float, share: float, context_share: float) -> Machine:
    """A draft model on the accelerator that the target was measured on.

    One row takes it `pass_ms`. What more rows add is `share` of what they add to the target, as
    the arithmetic does; and a token of context takes `context_share` of its time.
    """
    least_ms = target.measured[0][1]
    return Machine(
        pass_ms,
        measured=tuple((rows, pass_ms + share * (ms - least_ms)) for rows, ms in target.measured),
        context_ms=context_share * target.context_ms,
    )


# No draft model was measured. One of 1B has an eighth of the arithmetic and a quarter of the keys
# and values; 1 ms is what sixteen layers of small kernels take in a captured graph.
H200_1B = draft_of(H200_8B, 1.0, 1 / 8, 1 / 4)

MACHINES = {"h200-8b": H200_8B, "h200-1b": H200_1B}
