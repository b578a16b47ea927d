"""A discrete-event simulation of generation beside training, with the real scheduler.

Which batch starts, when weights may change, which groups a step takes and what starts
first is decided by ``nemo_rl/experience/schedule.py``, the code that training runs.
Engines have slots for continuous batching; a decoding step takes longer the more slots
are in use. Reading prompts, scoring and saving take no time here.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from nemo_rl.experience.schedule import AheadOptions, FirstToEnd, LengthBook, Schedule


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        prompts: of a step.
        generations: responses per prompt.
        median: tokens of a response.
        sigma: of the logarithm of the length.
        longest: where responses are cut.
        shared: part of the logarithm's variance that is the prompt's, which comes
            again in every epoch.
        rows: prompts of the data set.
        steps: training steps.
    """

    prompts: int = 64
    generations: int = 8
    median: float = 2000.0
    sigma: float = 1.0
    longest: int = 16384
    shared: float = 0.5
    rows: int = 640
    steps: int = 60

    def length(self, row: int, draw: int) -> int:
        """Tokens of a response; the same for the same prompt and draw."""
        own = random.Random(f"{row}/{draw}").gauss(0, 1)
        common = random.Random(f"{row}").gauss(0, 1)
        z = math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * own
        return max(16, min(self.longest, round(self.median * math.exp(self.sigma * z))))


@dataclass(frozen=True)
class Machines:
    """What it is trained on.

    Attributes:
        engines: that generate.
        slots: responses that an engine decodes at once.
        step_s: seconds of a decoding step of one response.
        slot_s: and what every further one adds.
        token_s: seconds of training per token.
        refit_s: seconds of a transfer of weights, in which engines rest.
    """

    engines: int = 8
    slots: int = 64
    step_s: float = 0.012
    slot_s: float = 0.0002
    token_s: float = 0.00005
    refit_s: float = 3.0


@dataclass
class _Response:
    batch: int
    group: int
    row: int
    length: int
    done: float = 0.0
    oldest: int | None = None


@dataclass
class _Engine:
    tokens: float = 0.0
    """Decoding steps so far: every running response advances by one in each."""
    heap: list[tuple[float, int, _Response]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a simulation found.

    Attributes:
        seconds: per training step.
        staleness: mean age of a response's oldest token, in updates.
        training_idle: share of the time in which the trainer waits.
        generation_idle: share of the slots that are not in use.
        restarted: share of responses that were started anew.
    """

    seconds: float
    staleness: float
    training_idle: float
    generation_idle: float
    restarted: float


class Simulation:
    """One run.

    Args:
        options: as for training.
        work: what is trained.
        machines: on what.
    """

    def __init__(self, options: AheadOptions, work: Work, machines: Machines) -> None:
        self.options, self.work, self.machines = options, work, machines
        self.schedule = Schedule(options, total=work.steps)
        self.book = LengthBook()
        self.now, self.drawn, self.events = 0.0, 0, 0
        self.engines = [_Engine() for _ in range(machines.engines)]
        self.queue: deque[_Response] = deque()
        self.held: list[tuple[int, list[list[_Response]]]] = []
        self.open: dict[int, list[list[_Response]]] = {}
        self.first: dict[int, FirstToEnd] = {}
        self.carried: list[list[_Response]] = []
        self.taken: dict[int, list[list[_Response]]] = {}
        self.trains_until = self.transfers_until = math.inf
        self.ages: list[int] = []
        self.busy_s = self.slot_seconds = 0.0
        self.restarted = 0

    def run(self) -> Outcome:
        """Simulate to the last step."""
        while self.schedule.version < self.work.steps:
            while self._act():
                pass
            self._advance()
        work, machines = self.work, self.machines
        slots = self.now * machines.engines * machines.slots
        return Outcome(
            seconds=self.now / work.steps,
            staleness=sum(self.ages) / len(self.ages),
            training_idle=1 - self.busy_s / self.now,
            generation_idle=1 - self.slot_seconds / slots,
            restarted=self.restarted / len(self.ages),
        )

    def _act(self) -> bool:
        """Do one thing that needs no time; False: there is none."""
        schedule = self.schedule
        if schedule.may_start():
            self._draw(schedule.start())
        elif self.held and schedule.may_generate():
            self._submit(*self.held.pop(0))
        elif schedule.update_wanted and self.transfers_until == math.inf:
            if not schedule.may_update():
                return self._fill()
            self.transfers_until = self.now + self.machines.refit_s
        elif self._trainer_waits() and schedule.consumed in schedule.finished:
            self._train()
        else:
            return self._fill()
        return True

    def _trainer_waits(self) -> bool:
        return self.trains_until == math.inf and not self.schedule.update_wanted

    def _draw(self, number: int) -> None:
        """Begin a batch: what was carried over, then new prompts."""
        groups = self.carried
        must = set()
        for place, group in enumerate(groups):
            begun = [r.oldest for r in group if r.oldest is not None]
            if self.schedule.must_end(number, min(begun, default=None)):
                must.add(place)
            for response in group:
                oldest = response.oldest
                allowed = self.schedule.oldest_allowed(number)
                if oldest is not None and oldest < allowed:
                    response.done, response.oldest = 0.0, None
                    self.restarted += 1
        fresh = self.options.under_way(self.work.prompts) - len(groups)
        self.carried = []
        for _ in range(fresh):
            row, epoch = self.drawn % self.work.rows, self.drawn // self.work.rows
            draws = range(epoch * 1000, epoch * 1000 + self.work.generations)
            groups.append(
                [
                    _Response(number, 0, row, self.work.length(row, draw))
                    for draw in draws
                ]
            )
            self.drawn += 1
        self.first[number] = FirstToEnd(
            must=must, wanted=self.work.prompts, total=len(groups)
        )
        self.held.append((number, groups))

    def _submit(self, number: int, groups: list[list[_Response]]) -> None:
        order = list(range(len(groups)))
        if self.options.sort_by_length:
            order = self.book.longest_first([group[0].row for group in groups])
        self.open[number] = groups
        self.schedule.generating += 1
        for place in order:
            for response in groups[place]:
                response.batch, response.group = number, place
                if response.done < response.length:
                    self.queue.append(response)
        for place in range(len(groups)):
            self._group_ended(number, place)

    def _fill(self) -> bool:
        """Give a free slot, of the emptiest engine, to whoever waits longest."""
        engine = min(self.engines, key=lambda one: len(one.heap))
        transfers = self.transfers_until < math.inf
        if not self.queue or len(engine.heap) >= self.machines.slots or transfers:
            return False
        response = self.queue.popleft()
        if response.oldest is None:
            response.oldest = self.schedule.version
        self.events += 1
        ends = engine.tokens + response.length - response.done
        heapq.heappush(engine.heap, (ends, self.events, response))
        return True

    def _advance(self) -> None:
        """Let time pass until something ends."""
        until, ending = min(self.trains_until, self.transfers_until), None
        resting = self.transfers_until < math.inf
        for engine in self.engines:
            if engine.heap and not resting:
                at = self.now + (engine.heap[0][0] - engine.tokens) * self._step(engine)
                if at <= until:
                    until, ending = at, engine
        if until == math.inf:
            raise RuntimeError("nothing can happen any more")
        seconds, self.now = until - self.now, until
        for engine in self.engines:
            if engine.heap and not resting:
                engine.tokens += seconds / self._step(engine)
                self.slot_seconds += seconds * len(engine.heap)
        if self.trains_until < math.inf:
            self.busy_s += seconds
        if ending is not None:
            ends, _, response = heapq.heappop(ending.heap)
            ending.tokens = max(ending.tokens, ends)
            response.done = response.length
            self._group_ended(response.batch, response.group)
        elif until == self.trains_until:
            self.trains_until = math.inf
            self.schedule.update_wanted = True
        else:
            self.transfers_until = math.inf
            self.schedule.update()

    def _step(self, engine: _Engine) -> float:
        return self.machines.step_s + self.machines.slot_s * len(engine.heap)

    def _group_ended(self, number: int, place: int) -> None:
        """If a group has ended, its batch may have, too."""
        groups = self.open.get(number)
        if groups is None or any(r.done < r.length for r in groups[place]):
            return
        first = self.first[number]
        if not first.end(place):
            return
        del self.open[number]
        self.schedule.generating -= 1
        self.schedule.finish(number)
        self.taken[number] = [groups[n] for n in first.chosen]
        self.carried = [groups[n] for n in first.left]
        self._abort([r for group in self.carried for r in group])

    def _abort(self, responses: list[_Response]) -> None:
        gone = {id(response) for response in responses}
        if not gone:
            return
        self.queue = deque(r for r in self.queue if id(r) not in gone)
        for engine in self.engines:
            for ends, _, response in engine.heap:
                if id(response) in gone:
                    response.done = response.length - (ends - engine.tokens)
            engine.heap = [entry for entry in engine.heap if id(entry[2]) not in gone]
            heapq.heapify(engine.heap)

    def _train(self) -> None:
        number = self.schedule.consumed
        self.schedule.consume(number)
        responses = [r for group in self.taken.pop(number) for r in group]
        oldest = [r.oldest for r in responses if r.oldest is not None]
        self.schedule.check_versions(number, min(oldest), number)
        self.ages += [number - version for version in oldest]
        self.book.observe([r.row for r in responses], [r.length for r in responses])
        tokens = sum(r.length for r in responses)
        self.trains_until = self.now + tokens * self.machines.token_s
