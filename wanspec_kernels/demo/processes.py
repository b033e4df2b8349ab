"""The demo's other processes: drafters, each behind a link of its own."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from wanspec_kernels.wire import keys

NICENESS = 10  # elsewhere a drafter would not compete with the target for a core
STOP_S = 5.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class EmulatedLink:
    round_trip_ms: float
    jitter_ms: float  # each way
    bandwidth_mbit: float | None

    def arguments(self) -> list[str]:
        found = [f"--one-way-delay-ms={self.round_trip_ms / 2}", f"--jitter-ms={self.jitter_ms}"]
        if self.bandwidth_mbit is not None:
            found.append(f"--bandwidth-mbit={self.bandwidth_mbit}")
        return found


@dataclass
class RemoteDrafter:
    """A `wanspec-drafter` process and the emulated link it dials through."""

    name: str
    log: Path
    link: subprocess.Popen[str]
    process: subprocess.Popen[str]
    command: tuple[str, ...]  # module and arguments of the process
    niceness: int

    @classmethod
    def start(
        cls,
        number: int,
        folder: Path,
        verifier: str,
        link: EmulatedLink,
        drafter: Sequence[str] = (),
        *,
        module: str = "drafter.main",
        niceness: int = NICENESS,
    ) -> "RemoteDrafter":
        """Dial `verifier` (tcp://HOST:PORT) with the keys of `make_keys` in `folder`.

        `drafter` has more of the daemon's options; `module` runs it.
        """
        name = f"drafter-{number}"
        emulator = _spawn(
            "wanspec_kernels.link_emulator",
            *("--connect", verifier.removeprefix("tcp://")),
            *link.arguments(),
            *("--seed", str(number)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert emulator.stdout is not None
        port = int(emulator.stdout.readline())
        command = (
            module,
            *("--connect", f"tcp://127.0.0.1:{port}"),
            *("--key", str(folder / f"{name}.secret")),
            *("--server-key", str(folder / "verifier.key")),
            *("--threads", "1"),
            *drafter,
        )
        log = folder / f"{name}.log"
        return cls(name, log, emulator, _start(command, niceness, log), command, niceness)

    def restart(self) -> None:
        """Kill the process, and begin another that dials through the same link."""
        self.process.kill()
        self.process.wait()
        self.process = _start(self.command, self.niceness, self.log)

    def tell_link(self, line: str) -> None:
        """`stall`, `resume`, `cut` and what else the emulator obeys."""
        assert self.link.stdin is not None
        self.link.stdin.write(f"{line}\n")
        self.link.stdin.flush()

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


def _start(command: Sequence[str], niceness: int, log: Path) -> subprocess.Popen[str]:
    with log.open("a") as stderr:
        return _spawn(*command, niceness=niceness, stderr=stderr)


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
        # A Ctrl-C is for us: we stop the others, and they would each say so. A group of its own is
        # enough for that; in a session of its own a process has, where the kernel groups sessions
        # for scheduling, the share of all of ours however nice it is.
        process_group=0,
        preexec_fn=prepare if sys.platform == "linux" else None,
    )
