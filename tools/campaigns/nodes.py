"""Two nodes of torchrun, one of which is lost: the run must end as if nothing had happened.

Each node has torchrun's agent and one worker. Where the machine allows it, each is in a network
namespace of its own, and a pair of virtual devices connects them; otherwise both are on loopback.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from campaigns import tiny
from campaigns.attempts import Attempt
from campaigns.children import Child, Ended, stopped
from campaigns.compare import checkpoints_of, differences
from campaigns.kills import STARTS
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tr_det.classification.engine.trainer import ClassifierTrainer
from tr_det.detection import QuantTrainer

PROMISE = (
    "a run of two nodes, one of which is lost, goes on from its last checkpoint and ends with the "
    "checkpoints, metrics and results of the undisturbed one, bit for bit"
)
ATTEMPTS = 12
MINUTES = 20.0
LIMIT = 300.0

RUNS: dict[str, Callable[[Path, bool], Callable[[], Any]]] = {
    "detector": lambda files, resume: tiny.detector(files, resume, "SOLVER.IMS_PER_BATCH", 4),
    "classifier": tiny.classifier,
}
FIRST_UPDATES = 7
"""Both kinds make more."""
_CLONE_NEWNET = 0x40000000


class Node(NamedTuple):
    """A node.

    Attributes:
        address: of its agent.
        device: its network device.
        namespace: of the network; "" for the machine's own.
        endpoint: of the rendezvous.
        is_host: whether its agent has the rendezvous.
    """

    address: str
    device: str
    namespace: str
    endpoint: str
    is_host: bool


class Shared(NamedTuple):
    """Files of all attempts, and the undisturbed runs' folders."""

    files: Path
    references: dict[str, Path]


def prepare(folder: Path) -> Shared:
    """Make the undisturbed runs, each twice: runs that differ could not be judged."""
    tiny.prepare(folder)
    references = {}
    for kind in RUNS:
        runs = [tiny.with_images(folder, folder / f"{kind}{i}") for i in (1, 2)]
        for run in runs:
            with _network() as nodes, ExitStack() as stack:
                children = [_start(kind, folder, run, node, stack) for node in nodes]
                for child in children:
                    tiny.require(child.wait(LIMIT))
        problems = differences(runs[1] / tiny.OUT, runs[0] / tiny.OUT)
        if problems:
            raise RuntimeError(f"two undisturbed runs of the {kind} differ: {problems}")
        references[kind] = runs[1] / tiny.OUT
    return Shared(folder, references)


def attempt(shared: Shared, rng: random.Random, number: int, folder: Path) -> Attempt:
    """Lose a node; replace it, or start both again where it had the rendezvous."""
    kind = list(RUNS)[number % len(RUNS)]
    lost, update = rng.randrange(2), rng.randint(1, FIRST_UPDATES)
    tiny.with_images(shared.files, folder)
    output = folder / tiny.OUT
    with _network() as nodes, ExitStack() as stack:
        after = [update if index == lost else None for index in range(2)]
        first = [
            _start(kind, shared.files, folder, node, stack, lost_at=at)
            for node, at in zip(nodes, after, strict=True)
        ]
        gone = first[lost].wait(LIMIT)
        if lost == 0:  # nobody can join the other one any more
            first[1].kill_all()
            first[1].wait(LIMIT)
        reached, torn = checkpoints_of(output)
        started = nodes if lost == 0 else nodes[1:]
        again = [
            _start(kind, shared.files, folder, node, stack, resume=lost == 0) for node in started
        ]
        ends = [child.wait(LIMIT) for child in [*again, *first[:lost]]]
        where = "on loopback" if not nodes[0].namespace else "in network namespaces"
    problems = [f"{name}: torn" for name in torn]
    if gone.status != -signal.SIGKILL:
        problems.append(f"was not lost: status {gone.status}: {gone.last_line}")
    problems += problems_of(ends, reached) or differences(output, shared.references[kind])
    way = "both were started again" if lost == 0 else "and was replaced"
    return Attempt(
        what=f"{kind} {where}: node {lost} lost before update {update}, {way}",
        outcome=f"{kind} {where} {'as undisturbed' if not problems else 'damaged'}",
        broken=f"{kind}: {problems[0]}" if problems else "",
        counts={"nodes lost": 1},
        notes={"problems": problems, "went on from": reached},
    )


def problems_of(ends: list[Ended], reached: int) -> list[str]:
    """Return what is wrong with how both nodes ended, after a checkpoint of ``reached`` updates."""
    problems = [
        f"did not end: status {ended.status}: {ended.last_line}"
        for ended in ends
        if ended.status != 0
    ]
    problems += ["processes outlive it" for ended in ends if ended.orphans]
    starts = [int(number) for ended in ends for number in STARTS.findall(ended.output)]
    if max(starts, default=0) < reached:
        problems.append(f"went on from iteration {max(starts, default=0)} instead of {reached}")
    return problems


def _start(
    kind: str,
    files: Path,
    folder: Path,
    node: Node,
    stack: ExitStack,
    resume: bool = False,
    lost_at: int | None = None,
) -> Child:
    """Start a node in a process of its own."""
    program = RUNS[kind](files, resume)
    log = folder / f"log{len(list(folder.glob('log*')))}"
    log.mkdir()

    def worker() -> None:
        if lost_at is not None:
            _lose_at(lost_at)
        program()

    child = Child(lambda: _agent(node, worker), folder, log)
    stack.enter_context(stopped(child))
    return child


def _agent(node: Node, worker: Callable[[], None]) -> None:
    """Do as torchrun does, but for workers that are forked instead of started anew."""
    if node.namespace:
        _enter(node.namespace)
    os.environ["GLOO_SOCKET_IFNAME"] = node.device
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/coco.md advises
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="run",
        rdzv_backend="c10d",
        rdzv_endpoint=node.endpoint,
        rdzv_configs={"is_host": node.is_host, "keep_alive_interval": 1},
        max_restarts=1,
        start_method="fork",
        local_addr=node.address,
    )
    elastic_launch(config, worker)()


def _lose_at(update: int) -> None:
    """Have the node lost, its agent and this worker, before an update of the run."""

    def losing(step: Callable[..., Any], name: str) -> Callable[..., Any]:
        def replacement(trainer: Any, *args: Any) -> Any:
            if getattr(trainer, name) == update:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(trainer, *args)

        return replacement

    QuantTrainer.run_step = losing(QuantTrainer.run_step, "iter")  # type: ignore[method-assign]
    ClassifierTrainer._step = losing(ClassifierTrainer._step, "iteration")  # type: ignore[method-assign]


@contextmanager
def _network() -> Iterator[list[Node]]:
    """Make two connected network namespaces, if the machine allows it; yield the nodes."""
    names = [f"td{os.getpid()}{end}" for end in "ab"]  # of namespaces and devices
    try:
        _connect(names)
        at = [(f"10.87.0.{number}", name, name) for number, name in enumerate(names, 1)]
        endpoint = "10.87.0.1:29400"
    except (OSError, subprocess.CalledProcessError):
        with socket.socket() as opened:
            opened.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{opened.getsockname()[1]}"
        at = [("127.0.0.1", "lo", "")] * 2
    try:
        yield [Node(*place, endpoint, is_host=index == 0) for index, place in enumerate(at)]
    finally:
        for name in names:
            with suppress(OSError, subprocess.CalledProcessError):  # there may be none
                _ip("netns", "del", name)


def _connect(names: list[str]) -> None:
    for name in names:
        _ip("netns", "add", name)
    first, second = names
    pair = ("type", "veth", "peer", "name", second, "netns", second)
    _ip("link", "add", first, "netns", first, *pair)
    for number, name in enumerate(names, 1):
        _ip("-n", name, "address", "add", f"10.87.0.{number}/30", "dev", name)
        for device in (name, "lo"):
            _ip("-n", name, "link", "set", device, "up")


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), capture_output=True, check=True)


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns", namespace)
