"""Ours beside others' on the same logits in one run: checked first, then timed.

    python -m bench.peers --commit 1a2b3c4 --out bench/results/verify_h200.json --table table.md
    python -m bench.peers --rows 'shapes/match/*/64x64/*'
    python -m bench.peers --draw bench/results/verify_h200.json

Each of our backends must give what the reference gives before it is timed, and each peer's output
must make sense. Without a GPU small shapes run on the reference and on torch alone.
"""

import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from math import ceil
from typing import Annotated, Any

import torch
import typer

from bench import table
from bench.cases import MODES, RULES, Case, accepted_case
from bench.peer_adapters import PEERS, NotInstalled, Peer
from bench.timing import Timing, extra_bytes, time_calls

OURS = ("cuda", "triton")
SHAPES = ((1, 64), (8, 64), (64, 8), (64, 64), (256, 8))
MAX_SETS_BYTES = 24 << 30
PEER_BYTES = 2 << 30  # of float32 rows, over a peer's sets
CHECKED_TREES = 16  # of a case against the reference, evenly spread


@dataclass(frozen=True)
class Row:
    """One line of a table: everything timed on one kind of case."""

    series: str  # "shapes", "depth" or "nodes"
    rule: str
    mode: str
    batch: int
    num_nodes: int
    depth: int
    vocab: int

    @property
    def id(self) -> str:
        shape = f"{self.batch}x{self.num_nodes}/a{self.depth}"
        return f"{self.series}/{self.rule}/{self.mode}/{shape}"


def all_rows(vocab: int, tiny: bool) -> list[Row]:
    """The judged table first, so that a run cut short has it."""
    if tiny:
        shapes, deep, growing = ((1, 16), (2, 8)), ((2, 24),), (8, 32)
    else:
        shapes, deep, growing = SHAPES, ((8, 64), (64, 64)), (16, 64, 256, 1024)
    modes = sorted(MODES, key=("temperature", "top_k_top_p", "greedy", "top_p").index)
    rows = [
        Row("shapes", rule, mode, batch, nodes, 3, vocab)
        for rule in RULES
        for mode in modes
        for batch, nodes in shapes
    ]
    rows += [
        Row("depth", rule, mode, batch, nodes, 10, vocab)
        for rule in RULES
        for mode in modes[:2]
        for batch, nodes in deep
    ]
    batch = 2 if tiny else 8
    rows += [
        Row("nodes", "match", mode, batch, nodes, 3, vocab)
        for mode in modes[:2]
        for nodes in growing
    ]
    return rows


def cases_of(row: Row, device: torch.device) -> tuple[list[Case], int]:
    """As many sets of inputs as it takes to keep their paths out of the cache.

    The first few differ, as many as the number returned; the others are the same logits at other
    addresses.
    """
    different = 1 if device.type != "cuda" or row.batch > 8 else 4 // min(row.batch, 4) + 1
    cases = [
        accepted_case(
            row.batch,
            row.num_nodes,
            row.vocab,
            device,
            depth=row.depth,
            mode=row.mode,
            rule=row.rule,
            seed=seed,
        )
        for seed in range(different)
    ]
    if device.type == "cuda":
        one = cases[0].logits.nbytes
        path = row.batch * (row.depth + 1) * row.vocab * cases[0].logits.element_size()
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        wanted = min(ceil(2.5 * cache / path), 128, max(1, MAX_SETS_BYTES // one))
        # Of one set that is larger than the cache by itself a second only adds variety.
        wanted = max(wanted, 2 if one < MAX_SETS_BYTES // 2 else 1)
        while len(cases) < wanted:
            cases.append(cases[len(cases) % different].elsewhere())
    return cases, different


def check_ours(cases: list[Case], backend: str) -> dict[str, int]:
    """`check_case` of each; how many trees were compared, and how many were equal throughout."""
    counts = [check_case(case, backend) for case in cases]
    return {"trees": sum(n for n, _ in counts), "equal": sum(equal for _, equal in counts)}


def check_case(case: Case, backend: str) -> tuple[int, int]:
    """Compare with the reference on some trees; verification does not depend on the batch.

    Under `rejection` a following token may differ where two residuals tie within rounding.

    Raises:
        AssertionError: they differ otherwise.
    """
    batch = len(case.trees)
    chosen = sorted({round(i * (batch - 1) / CHECKED_TREES) for i in range(CHECKED_TREES + 1)})
    ours, oracle = case.verify(backend), case.at(chosen).verify("reference")
    at = torch.tensor(chosen, device=case.logits.device)
    width = oracle.token_ids.shape[1]
    assert (oracle.num_accepted == case.accepted_depth).all(), "the case accepts another depth"
    assert torch.equal(ours.num_accepted[at], oracle.num_accepted), "another num_accepted"
    assert torch.equal(ours.accepted_nodes[at][:, : width - 1], oracle.accepted_nodes), (
        "other nodes accepted"
    )
    assert not ours.status.any(), "a row reported invalid"
    assert (ours.token_ids[at][:, width:] == -1).all(), "written past the end"
    equal = int((ours.token_ids[at][:, :width] == oracle.token_ids).all(1).sum())
    allowed = 0 if case.rule == "match" else len(chosen) // 10
    assert len(chosen) - equal <= allowed, f"{len(chosen) - equal} of {len(chosen)} trees differ"
    return len(chosen), equal


def runnable(device: torch.device, skipped: dict[str, str]) -> list[str]:
    """Our backends that run here; `skipped` gets why another does not."""
    case = accepted_case(1, 4, 256, device)
    found = []
    for backend in OURS if device.type == "cuda" else (*OURS, "reference"):
        try:
            case.verify(backend)
        except (RuntimeError, ValueError, ImportError) as error:
            skipped[backend] = table.brief(error)
        else:
            found.append(backend)
    return found


def run_row(
    row: Row, device: torch.device, ours: list[str], seconds: float, skipped: dict[str, str]
) -> dict[str, Any]:
    """Check and time everything on one row; what fails is recorded, not raised."""
    cases, different = cases_of(row, device)
    entries: dict[str, dict[str, Any]] = {}
    for backend in ours:
        entries[backend] = _entry(
            lambda backend=backend: check_ours(cases[:different], backend),
            lambda backend=backend: [lambda case=case: case.verify(backend) for case in cases],
            device,
            seconds,
        )
    rows_bytes = row.batch * row.num_nodes * row.vocab * 4
    few = cases[: max(1, min(8, PEER_BYTES // rows_bytes))]
    for peer in PEERS:
        if not peer.covers(cases[0]) or (peer.needs_cuda and device.type != "cuda"):
            continue
        try:
            calls = [peer.prepare(case) for case in few]
        except NotInstalled as error:
            skipped[peer.name] = str(error)
            continue
        except Exception as error:
            entries[peer.name] = {"status": f"failed: {table.brief(error)}"}
            continue
        entries[peer.name] = _entry(
            lambda peer=peer, calls=calls: _check_peer(peer, few[0], calls[0]()),
            lambda calls=calls: calls,
            device,
            seconds,
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
    path_rows = row.batch * (cases[0].accepted_depth + 1)  # what the checks found as well
    return {
        "id": row.id,
        **asdict(row),
        "rows_on_path": path_rows,
        "path_bytes": path_rows * row.vocab * cases[0].logits.element_size(),
        "sets": len(cases),
        "entries": entries,
    }


def _check_peer(peer: Peer, case: Case, out: Any) -> dict[str, int]:
    peer.check(case, out)
    return {}


def _entry(check: Any, calls: Any, device: torch.device, seconds: float) -> dict[str, Any]:
    try:
        checked = check()
    except AssertionError as error:
        return {"status": f"wrong: {table.brief(error)}"}
    except Exception as error:
        return {"status": f"failed: {table.brief(error)}"}
    try:
        made = calls()
        extra = extra_bytes(made[0], device)
        timing: Timing = time_calls(made, device, seconds)
    except Exception as error:
        return {"status": f"failed: {table.brief(error)}"}
    return {"status": "ok", "checked": checked, "extra_bytes": extra, **timing.as_dict()}


def main(
    out: table.Out = None,
    table_file: table.TableFile = None,
    rows: Annotated[
        str, typer.Option(help="Patterns of series/rule/mode/BxN/aDEPTH, comma between.")
    ] = "*",
    vocab: Annotated[int, typer.Option(help="0: 128,256 on a GPU, 4,096 elsewhere.")] = 0,
    commit: table.Commit = "",
    seconds: Annotated[float, typer.Option(help="Device time for each figure.")] = 0.2,
    limit: Annotated[float, typer.Option(help="Seconds after which no row is begun; 0: none.")] = 0,
    tiny: Annotated[bool, typer.Option(help="Small shapes, which a CPU takes without asking.")] = (
        False
    ),
    draw: table.Draw = None,
) -> None:
    """Time verification beside FlashInfer, SGLang, vLLM and torch; write JSON and Markdown."""
    patterns = [pattern.strip() for pattern in rows.split(",")]

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    if draw is not None:
        results = table.load(draw)
        results["rows"] = [row for row in results["rows"] if wanted(row["id"])]
        table.write(table_file, table.markdown(results))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = tiny or device.type == "cpu"
    if device.type == "cpu":
        typer.echo("skipped: full shapes, FlashInfer, SGLang, vLLM: no CUDA device here")
        torch.set_num_threads(1)  # threads that wait for each other would be most of the time
    chosen = [row for row in all_rows(vocab or (4096 if tiny else 128_256), tiny) if wanted(row.id)]
    if not chosen:
        raise typer.BadParameter(f"no row matches {rows!r}")
    results = table.begin("bench.peers", commit, device) | {"skipped": {}, "rows": []}
    typer.echo(table.heading(results))
    ours = runnable(device, results["skipped"])
    for name, why in results["skipped"].items():
        typer.echo(f"skipped: ours, {name}: {why}")
    started = time.monotonic()
    for row in chosen:
        if limit and time.monotonic() - started > limit:
            late = len(chosen) - len(results["rows"])
            results["skipped"]["rows"] = f"{late} not reached within {limit:g} s"
            break
        results["rows"].append(run_row(row, device, ours, seconds, results["skipped"]))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        typer.echo(f"{time.monotonic() - started:6.1f} s  {table.line(results['rows'][-1])}")
        if out is not None:
            table.save(results, out)  # after every row: a run may be cut short
    for name, why in results["skipped"].items():
        if name not in OURS:
            typer.echo(f"skipped: {name}: {why}")
    if out is not None:
        table.save(results, out)
    table.write(table_file, table.markdown(results))
    wrong = table.failures(results)
    for failure in wrong:
        typer.echo(f"FAILED {failure}")
    if any("wrong" in failure for failure in wrong):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
