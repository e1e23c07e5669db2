"""Real engines under the simulator's clock: the transport "inprocess".

A `LiveEngine` takes the place of a `ReferenceEngine`: planning an iteration runs one whole
`LLMEngine.step()`, whose effects on requests show when the iteration ends. Arrivals, clients,
events, telemetry, records and scores are the simulator's own.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from synergy_gym.live.backend import LiveEpisode, LiveOptions
from synergy_gym.live.hosting.steering import without_positive_caps
from synergy_gym.live.inprocess.machine import Machine, MachineStep, Timer
from synergy_gym.live.inprocess.machines import engine_house
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.plain.cache import BlockPool
from synergy_gym.sim.plain.engine import Features, Job, Outputs, ReferenceEngine, Step
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.simulator import CHECK_VARIABLE
from synergy_gym.types import BatchDecision, EngineSpec
from synergy_gym.workload.base import Workload

TIMERS: Mapping[str, Timer | None] = MappingProxyType(
    {"wall": time.perf_counter_ns, "cpu": time.process_time_ns, "model": None}
)
"""What measures an iteration, by clock name; "model" measures nothing."""


class LivePool(BlockPool):
    """The KV blocks of a machine, counted as the simulator counts them."""

    def __init__(self, machine: Machine) -> None:
        self.machine: Machine | None = machine
        spec = machine.config.spec
        self._last_free = spec.kv_blocks
        self.configured = spec.kv_blocks
        super().__init__(spec.kv_blocks, spec.block_size, spec.prefix_caching)

    def reset(self) -> None:
        """Make every remaining block free and forget all content."""
        self.owed = 0
        if self.machine is not None:
            self.machine.reset()
            self.machine.refuse_above(self.total * self.block_size)
            self.owed = self.configured - self.total
            self.settle()

    @property
    def free(self) -> int:
        """Blocks that no request holds."""
        return self._last_free if self.machine is None else self.machine.free_blocks()

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.total + self.owed - self.free

    def lose(self, blocks: int) -> None:
        """Shrink the pool by `blocks`; they disappear as they become free."""
        super().lose(blocks)
        if self.machine is not None:
            self.machine.refuse_above(self.total * self.block_size)

    def settle(self) -> None:
        """Give up owed blocks from the front of the free queue, as far as there are any."""
        given = min(self.owed, self.free)
        if given and self.machine is not None:
            self.machine.lose_free_blocks(given)
            self.owed -= given

    def check(self) -> None:
        """Raise `AssertionError` when vLLM's own counts disagree (invariant 4)."""
        if self.machine is not None:
            lost = self.machine.lost_blocks
            assert lost + self.total + self.owed == self.configured, "blocks are not conserved"

    def detach(self) -> None:
        """Keep the last counts; the machine serves somebody else from now on."""
        self._last_free, self.machine = self.free, None


class LiveEngine(ReferenceEngine):
    """A real engine with the interface of `ReferenceEngine`.

    `running`, `waiting` and the jobs mirror vLLM's own queues and requests.

    Args:
        spec: the engine's limits, as the scenario names them.
        machine: the vLLM engine, empty.
        prompts: token ids of the episode's requests.
        timer: measures the iterations, or `None` for modelled time.
        drop_caps: let requests with a token cap above zero run free, and count them.
    """

    def __init__(
        self,
        spec: EngineSpec,
        machine: Machine,
        prompts: Prompts,
        timer: Timer | None,
        drop_caps: bool,
    ) -> None:
        self.spec = spec
        self.machine = machine
        self.pool: LivePool = LivePool(machine)
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.steps = 0
        self.dropped_caps = 0
        self._prompts = prompts
        self._timer = timer
        self._drop_caps = drop_caps
        self._jobs: dict[str, Job] = {}
        self._names: dict[Job, str] = {}
        self._step: MachineStep | None = None
        self._checked = os.environ.get(CHECK_VARIABLE, "0") not in ("", "0")

    def add(self, job: Job) -> None:
        """Give a newly arrived request to vLLM."""
        tokens = self._prompts.tokens(job.request)[: job.prompt + job.output]
        name = f"{job.request:012d}"
        identity = self.machine.add(name, tokens, job.output, job.priority, float(job.arrival_ns))
        self._jobs[identity], self._names[job] = job, identity
        self._mirror()

    def plan(self, decision: BatchDecision, start_ns: int) -> Step:
        """Run one step of vLLM; what it did to requests shows at `commit`."""
        if self._checked:
            self.check()
        ran = self.machine.step(self._possible(decision), start_ns, self._timer)
        self._step = ran
        step = Step(self.steps, start_ns, decision.token_budget, measured_ns=ran.elapsed_ns)
        for identity in ran.scheduled.preempted:
            self._preempted(self._jobs[identity], step)
        for identity, hit in ran.scheduled.admitted.items():
            self._admitted(self._jobs[identity], hit, step)
        step.rejected = [self._leave(identity) for identity in ran.refused]
        step.scheduled = {self._jobs[name]: n for name, n in ran.scheduled.scheduled.items()}
        step.features = Features.of(step.scheduled)
        self.running = [self._jobs[name] for name in ran.running]
        self.waiting = [self._jobs[name] for name in ran.waiting]
        self.steps += self.has_work
        if self._checked:
            self._check_step(step, ran)
        if not self.has_work:
            self.machine.settle()
        return step

    def commit(self, step: Step) -> Outputs:
        """End an iteration: aborted requests leave, vLLM's outputs are handed out."""
        ran, self._step = self._step, None
        assert ran is not None, "commit without plan"
        outputs = Outputs(aborted=[job for job in self.running if job.abort_due])
        self.machine.settle([self._names[job] for job in outputs.aborted])
        for job, tokens in step.scheduled.items():
            job.computed += tokens
        for identity in ran.emitted:
            job = self._jobs[identity]
            if not job.abort_due:
                outputs.emitted.append((job, step.end_ns - job.last_token_ns))
                self._emit(job, step.end_ns)
        outputs.finished = [self._jobs[n] for n in ran.finished if not self._jobs[n].abort_due]
        for job in (*outputs.aborted, *outputs.finished):
            job.computed = 0
            self._leave(self._names[job])
        self._mirror()
        if self._checked:
            self.check()
        return outputs

    def remove(self, job: Job) -> None:
        """Take a waiting request out (the client aborted it)."""
        identity = self._names[job]
        self.machine.abort([identity])
        self._leave(identity)
        job.computed = 0
        (self.running if job in self.running else self.waiting).remove(job)

    def clear(self) -> list[Job]:
        """Lose everything (the engine went down); returns the requests it had."""
        lost = [*self.running, *self.waiting]
        self.pool.reset()
        self.running, self.waiting, self._step = [], [], None
        self._jobs, self._names = {}, {}
        return lost

    def check(self) -> None:
        """Raise `AssertionError` when the jobs differ from vLLM's own requests."""
        self.pool.check()
        if self.pool.machine is None or self._step is not None:
            return  # given back, or in the middle of an iteration that is not visible yet
        for jobs, requests in zip((self.running, self.waiting), self.machine.queues(), strict=True):
            mirrored = [(self._names[j], j.computed, j.generated, j.preemptions) for j in jobs]
            own = [
                (r.request_id, r.num_computed_tokens, r.num_output_tokens, r.num_preemptions)
                for r in requests
            ]
            assert mirrored == own, f"jobs {mirrored} differ from vLLM's requests {own}"
        assert len(self._jobs) == len(self._names) == len(self.running) + len(self.waiting)

    def detach(self) -> None:
        """Let go of the machine; counts stay as they are."""
        self.pool.detach()

    def _possible(self, decision: BatchDecision) -> BatchDecision:
        possible, dropped = without_positive_caps(decision)
        caps = decision.token_caps
        if caps is not None and dropped and not self._drop_caps:
            raise ValueError(
                f"token_caps holds {max(caps.tolist())}; vLLM can skip a request (0) "
                "but not cap its tokens: use a prefill_chunk, a policy without uses_token_caps, or "
                "LiveOptions(token_caps='drop')"
            )
        self.dropped_caps += dropped
        return possible

    def _preempted(self, job: Job, step: Step) -> None:
        job.preemptions += 1
        job.computed = 0
        step.preempted.append(job)

    def _admitted(self, job: Job, hit: int, step: Step) -> None:
        job.computed = hit
        step.admitted.append(job)
        if job.scheduled_ns < 0:
            job.scheduled_ns, job.cached = step.start_ns, hit

    def _leave(self, identity: str) -> Job:
        job = self._jobs.pop(identity)
        del self._names[job]
        return job

    def _mirror(self) -> None:
        running, waiting = self.machine.queues()
        self.waiting = [self._jobs[request.request_id] for request in waiting]
        if self._step is None:  # what finished in a step runs until the step has ended
            self.running = [self._jobs[request.request_id] for request in running]

    def _check_step(self, step: Step, ran: MachineStep) -> None:
        """The step as vLLM's numbers say it equals the step as the jobs say it."""
        own, said = ran.scheduled.features, step.features
        assert own == said, f"vLLM scheduled {own}, the jobs say {said}"
        emitting = [job for job, tokens in step.scheduled.items() if job.missing == tokens]
        assert emitting == [self._jobs[name] for name in ran.emitted], "other tokens were emitted"


class LiveSimulator(ReferenceSimulator):
    """A cluster of real engines in this process under one virtual clock.

    Iterations of several engines run one after the other in reality and beside each other in
    virtual time. `close()` gives the engines back; results stay readable.
    """

    def __init__(
        self,
        *,
        live: Sequence[LiveEngine],
        options: LiveOptions,
        release: Callable[[], None],
        **world: Any,
    ) -> None:
        self._live = list(live)
        self._options = options
        super().__init__(make_engine=lambda index, spec: self._live[index], **world)
        self._finalizer = weakref.finalize(self, release)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Give the engines back to whoever plays next; a second call does nothing."""
        for engine in self._live:
            engine.detach()
        self._finalizer()

    def advance(self) -> int:
        """Run to the next decision point that no rule answers; returns its kind.

        Raises:
            RuntimeError: the last point is still unanswered, or the engines were given back.
        """
        if not self._finalizer.alive:
            raise RuntimeError("this episode was closed, its engines serve others; begin a new one")
        return super().advance()

    def live_report(self) -> dict[str, Any]:
        """What a manifest says about the engines: options, vLLM, device and dropped caps."""
        first = self._live[0].machine
        return {
            **self._options.entry(),
            **first.software(),
            "dropped_token_caps": sum(engine.dropped_caps for engine in self._live),
        }

    def snapshot(self) -> object:
        """Not possible: a real engine cannot be copied.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "snapshot() and restore() need a simulated backend: vLLM's KV cache and queues cannot "
            "be copied; use backend='sim' or 'reference'"
        )

    def restore(self, snapshot: object) -> None:
        """Not possible; see `snapshot`.

        Raises:
            NotImplementedError: always.
        """
        self.snapshot()


def build_inprocess(episode: LiveEpisode) -> LiveSimulator:
    """The episode on engines in this process, before its first arrival.

    Raises:
        VllmUnavailableError: vLLM is absent, broken or of another release.
        ValueError: the model cannot serve the scenario's limits.
    """
    options, scenario = episode.options, episode.scenario
    house = engine_house()
    try:
        machines = house.lease([house.configuration(spec, options) for spec in scenario.engines])
    except ValueError as error:
        raise ValueError(f"scenario {scenario.name!r} on vLLM: {error}") from error
    try:
        return _simulator(episode, machines, lambda: house.give_back(machines))
    except BaseException:
        house.give_back(machines)
        raise


def _simulator(
    episode: LiveEpisode, machines: list[Machine], release: Callable[[], None]
) -> LiveSimulator:
    options, scenario = episode.options, episode.scenario
    traffic = episode.workload or scenario.workload(episode.load, episode.seed)
    specs = scenario.engines
    prompts = _prompts(traffic, machines)
    live = [
        LiveEngine(spec, machine, text, TIMERS[options.clock], options.token_caps == "drop")
        for spec, machine, text in zip(specs, machines, prompts, strict=True)
    ]
    made = functools.partial(LiveSimulator, live=live, options=options, release=release)
    simulator: LiveSimulator = build_simulator(
        scenario,
        seed=episode.seed,
        workload=traffic,
        rules=episode.rules,
        auto_route=episode.auto_route,
        record_itl=episode.record_itl,
        cls=made,
    )
    return simulator


def _prompts(traffic: Workload, machines: Sequence[Machine]) -> list[Prompts]:
    """Token ids for each machine; equal models and block sizes share them."""
    kinds = [(machine.vocabulary, machine.config.spec.block_size) for machine in machines]
    made = {kind: Prompts(traffic, *kind) for kind in set(kinds)}
    return [made[kind] for kind in kinds]
