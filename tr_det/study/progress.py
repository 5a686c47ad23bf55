"""How far a study has come, on a terminal and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from tqdm import tqdm

from tr_det.study.outcomes import DIVERGED, DONE, FAILED, Outcomes
from tr_det.study.plan import Plan
from tr_det.study.run import Runner
from tr_det.study.states import (
    SEARCHED,
    Clock,
    expected,
    in_words,
    needed,
    searched_rows,
    state_of,
)


class Progress:
    """One line on a terminal; in a log a line whenever a run has ended.

    Args:
        clock: says how long the rest takes.
        slots: runs at once.
    """

    def __init__(self, clock: Clock, slots: int) -> None:
        self.clock, self.slots = clock, slots
        self._line = tqdm(bar_format="{desc}", disable=not sys.stderr.isatty())
        self._ended = -1

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._line.close()

    def show(self, runner: Runner) -> None:
        """Show how far a study has come."""
        outcomes = runner.outcomes
        ended = sum(outcomes(cell) is not None for cell in runner.plan.cells())
        text = summary(runner.plan, outcomes, self.clock, self.slots, runner.running)
        self._line.set_description_str(text)
        if self._line.disable and ended != self._ended:
            self.say(text)
        self._ended = ended

    def say(self, text: str) -> None:
        """Print a line for a user to read."""
        self._line.write(f"{time.strftime('%H:%M')} {text}", file=sys.stderr)
        sys.stderr.flush()


def summary(
    plan: Plan, outcomes: Outcomes, clock: Clock, slots: int, running: Iterable[str] = ()
) -> str:
    """Return a line: runs that have ended, those that go on or failed, and when the rest ends."""
    cells, left, going = plan.cells(), needed(plan, outcomes), len(list(running))
    states = [state_of(cell, outcomes) for cell in cells]
    done, unknown = states.count(DONE) + states.count(DIVERGED), expected(plan)
    failed = states.count(FAILED)
    text = f"{plan.study.name}: {done}/{done + len(left) + len(unknown)} runs done, {going} running"
    text += f", {failed} failed" if failed else ""
    if not (left or unknown):
        return text
    rest = clock.rest([*left, *unknown], plan, outcomes)
    if rest is None:
        return f"{text}, unknown hours of runs left"
    total = sum(rest.seconds)
    wall = max(total / slots, *rest.seconds)
    end = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + wall))
    text += f", {in_words(total)} of runs left, {in_words(wall)} with {slots} at once (until {end})"
    if rest.estimated is not None and plan.study.estimate is not None:
        text += f"; by the estimate for {plan.study.estimate.hardware}"
        text += f": {rest.estimated:,.0f} GPU hours" if rest.estimated else ""
    return text


def cells_table(plan: Plan, outcomes: Outcomes, running: Iterable[str], missing_only: bool) -> str:
    """Return a line for each run: its state, its value and its folder."""
    running, lines = set(running), []
    known = needed(plan, outcomes) if missing_only else plan.cells()
    for cell in known:
        outcome = outcomes(cell)
        value = f"{outcome.value:8.2f}" if outcome and outcome.value is not None else " " * 8
        error = f"  {outcome.error}" if outcome and outcome.error else ""
        state = state_of(cell, outcomes, running)
        if missing_only and state == DONE:
            state = "again"  # its files, which other runs read, are elsewhere
        lines.append(f"{state:<9}{value}  {cell.name}{error}")
    lines += [f"{SEARCHED:<17}  {name}" for name in searched_rows(plan)]
    return "\n".join(lines)
