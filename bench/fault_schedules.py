"""Schedules of faults in real processes: what happens to a drafter, its link or the verifier."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from wanspec_kernels.demo.processes import RemoteDrafter

Fault = Callable[["Scene"], Awaitable[None]]


@dataclass
class Scene:
    """What a schedule may break. `mended` is called when it is whole again."""

    drafter: RemoteDrafter
    restart_verifier: Callable[[], None]
    mended: Callable[[], None]


def send(number: signal.Signals) -> Fault:
    async def strike(scene: Scene) -> None:
        scene.drafter.process.send_signal(number)
        if number == signal.SIGCONT:
            scene.mended()

    return strike


def tell(line: str) -> Fault:
    async def strike(scene: Scene) -> None:
        scene.drafter.tell_link(line)
        if line in ("resume", "bandwidth 0"):
            scene.mended()

    return strike


def wait(seconds: float) -> Fault:
    async def strike(_: Scene) -> None:
        await asyncio.sleep(seconds)

    return strike


async def restart_drafter(scene: Scene) -> None:
    scene.drafter.restart()
    scene.mended()


async def restart_verifier(scene: Scene) -> None:
    scene.restart_verifier()
    scene.mended()


STOP, CONTINUE = send(signal.SIGSTOP), send(signal.SIGCONT)

SCHEDULES: dict[str, tuple[Fault, ...]] = {
    "killed": (send(signal.SIGKILL),),
    "killed, and another started": (send(signal.SIGKILL), wait(0.3), restart_drafter),
    "stopped for 1 s": (STOP, wait(1.0), CONTINUE),
    "stopped for 5 s, past its heartbeats": (STOP, wait(5.0), CONTINUE),
    "connection cut": (tell("cut"),),
    "cut twice": (tell("cut"), wait(0.5), tell("cut")),
    "cut in the middle of a message": (tell("tear"),),
    "link stalled for 1 s": (tell("stall"), wait(1.0), tell("resume")),
    "link stalled for 5 s, past its heartbeats": (tell("stall"), wait(5.0), tell("resume")),
    "cut while stalled": (tell("stall"), wait(0.5), tell("cut"), wait(0.5), tell("resume")),
    "bandwidth of 20 kbit/s for 2 s": (
        tell("bandwidth 0.02"),
        wait(2.0),
        tell("bandwidth 0"),
    ),
    "torn on a narrow link": (
        tell("bandwidth 0.05"),
        wait(0.5),
        tell("tear"),
        wait(0.5),
        tell("bandwidth 0"),
    ),
    "verifier restarted": (restart_verifier,),
    "verifier restarted while the link stalls": (
        tell("stall"),
        restart_verifier,
        wait(0.5),
        tell("resume"),
    ),
    "verifier restarted, drafter killed and started": (
        restart_verifier,
        send(signal.SIGKILL),
        restart_drafter,
    ),
}
