"""Support: what of a plan's inputs the model can be asked about, and what it cannot."""

from collections.abc import Iterable

from wanspec_kernels.drafts.admission import AdmissionConfig
from wanspec_kernels.planning.inputs import Drafter, Inputs
from wanspec_kernels.probing.frames import draft_bytes
from wanspec_kernels.probing.records import percentiles
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import Measures
from wanspec_kernels.simulation.scenario import Machine
from wanspec_kernels.simulation.trace import Trace

ROWS = (16, 32, 64)  # of a request's verified tree
WIDTHS = (16, 32, 64, 128)  # nodes that a drafter's pass expands for a request
MIN_SAMPLES = 1000  # ten past the 99th percentile
MIN_SECONDS = 20.0
MIN_POSITIONS = 2000  # of a trace: its acceptance is known to 1 %
STALL_PASSES = 3.0  # of the target: a message that much later than the least is in a stall
MIN_STALLS = 5  # seen, or none: of fewer nobody knows how often they come
MAX_BANDWIDTH_SHARE = 0.7  # of what was measured; above, messages queue as none was seen to


def link_profile(drafter: Drafter) -> LinkProfile:
    """The link as it was over all records, one after another."""
    records = drafter.records
    least = min(record.round_trip_ms for record in records)
    up: list[float] = []
    down: list[float] = []
    for record in records:
        # Another route, or another hour: half of what it is longer, each way.
        longer = (record.round_trip_ms - least) / 2
        up += [longer + ms for ms in record.up_ms]
        down += [longer + ms for ms in record.down_ms]
    return LinkProfile(
        least,
        bandwidth_mbit=min(record.bandwidth_mbit for record in records),
        up_ms=tuple(up),
        down_ms=tuple(down),
        measured_every_ms=records[0].interval_ms,
    )


def refusals(inputs: Inputs) -> list[str]:
    """Why nothing can be said of the whole plan; empty: it can."""
    found = _of_trace("draft", inputs.trace)
    if not _covers(inputs.target, 1):
        found.append("target.pass_ms: expected a table that begins at 1 row: a tree has many")
    elif not _covers(inputs.target, inputs.requests * ROWS[0]):
        found.append(
            f"target.pass_ms: {inputs.requests} requests of {ROWS[0]} rows or more are past the "
            f"{inputs.target.measured[-1][0]} rows that were measured"
        )
    if inputs.requests > 1 and inputs.home is not None and not inputs.home.measured:
        found.append(f"home.pass_ms: expected a table by rows, for {inputs.requests} requests")
    return found


def drafter_refusals(inputs: Inputs, drafter: Drafter) -> list[str]:
    """Why nothing can be said of this drafter."""
    found: list[str] = []
    records = drafter.records
    if drafter.trace is not None:
        found += _of_trace("its draft", drafter.trace)
        if not drafter.trace.same_texts(inputs.trace):
            found.append("its trace is of other texts than the plan's: record both on the same")
    if len({record.interval_ms for record in records}) > 1:
        found.append("its link was probed at several intervals: keep to one")
    if any(record.payload_bytes < draft_bytes() for record in records):
        least = min(record.payload_bytes for record in records)
        found.append(f"its link was probed with {least} bytes; a draft has {draft_bytes()}")
    samples = sum(len(record.up_ms) for record in records)
    seconds = sum(len(record.up_ms) * record.interval_ms for record in records) / 1000
    if samples < MIN_SAMPLES or seconds < MIN_SECONDS:
        found.append(
            f"its link was probed with {samples} messages in {seconds:.0f} s; expected "
            f"{MIN_SAMPLES} in {MIN_SECONDS:.0f} s at least"
        )
    if lost := sum(record.lost for record in records):
        found.append(f"{lost} probes were never answered: how its link breaks was not sampled")
    stalls = count_stalls(drafter, STALL_PASSES * inputs.target.time_ms(1))
    if 0 < stalls < MIN_STALLS:
        found.append(
            f"its link stalled {stalls} times in {seconds:.0f} s: how often is not known from "
            f"fewer than {MIN_STALLS}; probe {seconds * MIN_STALLS / stalls:.0f} s or more"
        )
    if inputs.requests > 1 and not drafter.machine.measured:
        found.append(f"its pass_ms: expected a table by rows, for {inputs.requests} requests")
    elif not widths_of(inputs, [drafter]):
        found.append(
            f"its pass_ms was measured for {drafter.machine.measured[0][0]} to "
            f"{drafter.machine.measured[-1][0]} rows, {inputs.requests} requests of "
            f"{WIDTHS[0]} to {WIDTHS[-1]} are asked about"
        )
    return found


def rows_of(inputs: Inputs) -> list[int]:
    """Of a request's trees, those for which the target's time was measured."""
    return [rows for rows in ROWS if _covers(inputs.target, inputs.requests * rows)]


def widths_of(inputs: Inputs, drafters: Iterable[Drafter]) -> list[int]:
    """Nodes a pass, for which all these drafters' times were; a plain number is for any."""
    return [
        width
        for width in WIDTHS
        if all(
            not drafter.machine.measured or _covers(drafter.machine, inputs.requests * width)
            for drafter in drafters
        )
    ]


def run_refusals(measures: Measures, bandwidth_mbit: float, share: float = 1.0) -> list[str]:
    """Why a run says nothing of what would happen, at so large a share of what is allowed."""
    found = []
    if measures.up_mbit > share * MAX_BANDWIDTH_SHARE * bandwidth_mbit:
        found.append(
            f"{measures.up_mbit:.1f} Mbit/s of drafts, too near the link's {bandwidth_mbit:.1f}"
        )
    most = AdmissionConfig().max_messages_per_s
    if measures.drafts_per_s > share * most:
        found.append(
            f"{measures.drafts_per_s:.0f} frames a second, too near the {most:.0f} that a verifier "
            "reads of a drafter"
        )
    return found


def notes(drafter: Drafter) -> list[str]:
    """What was measured of a usable link, and what it does not exclude."""
    records = drafter.records
    middle, high, highest = percentiles(
        (ms for r in records for ms in r.round_trips_ms), (50, 95, 99)
    )
    seconds = sum(len(record.up_ms) * record.interval_ms for record in records) / 1000
    days = sorted(record.at for record in records)
    when = f"at {days[0]}" if len(days) == 1 else f"{len(days)} times, {days[0]} to {days[-1]}"
    return [
        f"{drafter.name}: round trip {middle:.1f} ms, 95th percentile {high:.1f}, 99th "
        f"{highest:.1f}, probed {when}; what happens less than once in {seconds / 3:.0f} s may not "
        "have been seen"
    ]


def count_stalls(drafter: Drafter, above_ms: float) -> int:
    """Spells in which messages were later than the least by more than `above_ms`."""
    count = 0
    for record in drafter.records:
        late = [
            max(up, down) > above_ms for up, down in zip(record.up_ms, record.down_ms, strict=True)
        ]
        count += sum(now and not before for before, now in zip([False, *late], late, strict=False))
    return count


def _of_trace(where: str, trace: Trace) -> list[str]:
    positions = len(trace.token_ids)
    if positions < MIN_POSITIONS:
        return [f"{where}: a trace of {positions} positions; expected {MIN_POSITIONS} at least"]
    return []


def _covers(machine: Machine, rows: int) -> bool:
    return bool(machine.measured) and machine.measured[0][0] <= rows <= machine.measured[-1][0]
