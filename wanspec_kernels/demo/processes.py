"""The demo's other processes: drafters, each behind a link of its own."""

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from wanspec_kernels import keys

MAX_NODES = 160  # of a drafter's tree
NICENESS = 10  # elsewhere a drafter would not compete with the target for a core
BANDWIDTH_MBIT = 50.0
JITTER_SHARE = 0.05  # of the one-way delay
STOP_S = 5.0
PR_SET_PDEATHSIG = 1


@dataclass
class RemoteDrafter:
    """A `wanspec-drafter` process and the emulated link it dials through."""

    name: str
    log: Path
    link: subprocess.Popen[str]
    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls,
        number: int,
        folder: Path,
        verifier: str,
        round_trip_ms: float,
        *,
        draft: str,
        device: str,
    ) -> "RemoteDrafter":
        """Dial `verifier` (tcp://HOST:PORT) with the keys of `make_keys` in `folder`."""
        name = f"drafter-{number}"
        link = _spawn(
            "wanspec_kernels.link_emulator",
            *("--connect", verifier.removeprefix("tcp://")),
            *("--one-way-delay-ms", str(round_trip_ms / 2)),
            *("--jitter-ms", str(JITTER_SHARE * round_trip_ms / 2)),
            *("--bandwidth-mbit", str(BANDWIDTH_MBIT)),
            *("--seed", str(number)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert link.stdout is not None
        port = int(link.stdout.readline())
        log = folder / f"{name}.log"
        with log.open("w") as stderr:
            process = _spawn(
                "drafter.main",
                *("--connect", f"tcp://127.0.0.1:{port}"),
                *("--model", draft),
                *("--device", device),
                *("--key", str(folder / f"{name}.secret")),
                *("--server-key", str(folder / "verifier.key")),
                *("--threads", "1"),
                *("--max-nodes", str(MAX_NODES)),
                niceness=NICENESS,
                stderr=stderr,
            )
        return cls(name, log, link, process)

    def ended(self) -> str | None:
        """Why the process has ended, or None."""
        if self.process.poll() is None:
            return None
        lines = self.log.read_text().strip().splitlines() or ["it said nothing"]
        return f"{self.name} ended with status {self.process.returncode}: {lines[-1]}"

    def stop(self) -> None:
        for process in (self.process, self.link):
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # one that is stopped would not hear it
        for process in (self.process, self.link):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (self.link.stdin, self.link.stdout):
            if pipe is not None:
                pipe.close()


def make_keys(folder: Path, num_drafters: int) -> Path:
    """Keys of a verifier and its drafters in `folder`; returns the folder of those let in."""
    allowed = folder / "allowed"
    allowed.mkdir()
    keys.generate(folder, "verifier")
    for number in range(1, num_drafters + 1):
        name = f"drafter-{number}"
        keys.generate(folder, name)
        (allowed / f"{name}.key").write_text((folder / f"{name}.key").read_text())
    return allowed


def _spawn(
    module: str,
    *arguments: str,
    niceness: int = 0,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: TextIO | None = None,
) -> subprocess.Popen[str]:
    def prepare() -> None:
        os.nice(niceness)
        # A demo that is killed must not leave drafters dialling for ever.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=prepare if sys.platform == "linux" else None,
    )
