"""A campaign: seeded attempts in parallel, within a time limit, written down one by one."""

from __future__ import annotations

import json
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from campaigns.children import Child, stopped

from tr_det.runtime.files import write_json


@dataclass
class Attempt:
    """One attempt.

    Attributes:
        what: was done.
        outcome: in a few words, counted in the summary.
        broken: the promise that did not hold, "" if all did.
        counts: numbers that are summed up, e.g. of kills.
        notes: anything else worth reading.
    """

    what: str
    outcome: str
    broken: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Campaign(Protocol):
    """What a campaign's module has.

    Attributes:
        PROMISE: what must hold in every attempt.
        ATTEMPTS: how many by default.
        MINUTES: time limit by default.
    """

    PROMISE: str
    ATTEMPTS: int
    MINUTES: float

    def prepare(self, folder: Path) -> Any:
        """Return what all attempts share; made in a folder of its own."""

    def attempt(self, shared: Any, rng: random.Random, number: int, folder: Path) -> Attempt:
        """Make one attempt in an empty folder."""


@dataclass(frozen=True)
class Settings:
    """How much is done, and where.

    Attributes:
        numbers: of the attempts; each is repeatable by seed and number alone.
        seconds: after which no attempt begins.
        seed: of the campaign.
        jobs: processes.
        output: folder of the record.
        work: folder of everything else.
        keep: whether the folders of broken attempts are kept.
    """

    numbers: range
    seconds: float
    seed: int
    jobs: int
    output: Path
    work: Path
    keep: bool = False


def run(name: str, campaign: Campaign, settings: Settings, say: Callable[[str], None]) -> int:
    """Run a campaign and write ``NAME.json``; return how many attempts broke the promise."""
    began = time.perf_counter()
    settings.output.mkdir(parents=True, exist_ok=True)
    shared = campaign.prepare(settings.work / "shared")
    say(f"prepared in {time.perf_counter() - began:.0f} s")
    workers = []
    for job in range(settings.jobs):
        files = settings.work / f"worker{job}"
        files.mkdir(parents=True)
        work = partial(_work, name, campaign, shared, began, settings, files)
        workers.append((Child(work, files, files), files))
    rows: list[dict[str, Any]] = []
    for child, files in workers:
        with stopped(child):
            ended = child.wait(settings.seconds * 2 + 600)
        rows += [json.loads(line) for line in _lines(files)]
        if ended.status != 0:
            raise RuntimeError(f"a worker of the campaign failed:\n{ended.output}")
    rows.sort(key=lambda row: row["number"])
    seconds = time.perf_counter() - began
    broken = sum(bool(row["broken"]) for row in rows)
    summary = {
        "campaign": name,
        "promise": campaign.PROMISE,
        "seed": settings.seed,
        "attempts": len(rows),
        "wanted": len(settings.numbers),
        "broken": broken,
        "outcomes": Counter(row["outcome"] for row in rows),
        "counts": sum((Counter(row["counts"]) for row in rows), Counter()),
        "seconds": round(seconds),
    }
    write_json(settings.output / f"{name}.json", {**summary, "rows": rows})
    say(text_of(summary, rows))
    return broken


def text_of(summary: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the summary as text: outcomes, and broken promises with one example of each kind."""
    cut = "" if summary["attempts"] == summary["wanted"] else f" of {summary['wanted']}, time over"
    lines = [f"{summary['campaign']}: {summary['attempts']} attempts{cut}, {summary['seconds']} s"]
    lines += [f"{count:7}  {what}" for what, count in summary["outcomes"].most_common()]
    lines += [f"{count:7}  {what} in all" for what, count in summary["counts"].items()]
    lines += [f"promise: {summary['promise']}", f"broken: {summary['broken']}"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["broken"]:
            kinds.setdefault(row["broken"], []).append(row)
    for broken, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = found[0]
        lines.append(f"{len(found):7}  {broken}  [--only {first['number']}: {first['what']}]")
    return "\n".join(lines)


def _work(
    name: str,
    campaign: Campaign,
    shared: Any,
    began: float,
    settings: Settings,
    files: Path,
) -> None:
    claims = settings.work / "claims"
    claims.mkdir(exist_ok=True)
    for number in settings.numbers:
        if time.perf_counter() - began > settings.seconds:
            return
        try:
            (claims / str(number)).mkdir()
        except FileExistsError:  # another worker makes this attempt
            continue
        rng = random.Random(f"{name} {settings.seed} {number}")
        folder = files / str(number)
        folder.mkdir()
        start = time.perf_counter()
        try:
            attempt = campaign.attempt(shared, rng, number, folder)
        except Exception:  # the others go on
            line = traceback.format_exc()
            attempt = Attempt("nothing: the campaign's own code failed", "no result", line)
        row = {"number": number, **asdict(attempt), "seconds": time.perf_counter() - start}
        with (files / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not (settings.keep and attempt.broken):
            shutil.rmtree(folder)


def _lines(files: Path) -> list[str]:
    rows = files / "rows.jsonl"
    return rows.read_text().splitlines() if rows.exists() else []
