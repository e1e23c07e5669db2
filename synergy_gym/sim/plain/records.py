"""What happened to every offered request of an episode."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from synergy_gym.sim.plain.engine import Job
from synergy_gym.types import NS_PER_S, SLO, IntArray, Outcome, RequestRecords, RequestView
from synergy_gym.workload.base import Workload


class RequestTable:
    """One row per offered request, and the scores that follow from them.

    Args:
        workload: the traffic.
        slos: objectives per class.
        warmup_ns: arrivals before this are not scored.
        horizon_ns: arrivals from here on are not scored.
        record_itl: keep the gaps between tokens of scored requests.
    """

    def __init__(
        self,
        workload: Workload,
        slos: Sequence[SLO],
        warmup_ns: int,
        horizon_ns: int,
        record_itl: bool,
    ) -> None:
        n = len(workload)
        open_loop = workload.after < 0
        self.workload = workload
        self.arrival_ns: list[int] = np.where(open_loop, workload.arrival_ns, -1).tolist()
        self.attempts = [0] * n
        self.engine = [-1] * n
        self.outcome = [int(Outcome.PENDING)] * n
        self.finish_ns = [-1] * n
        self.output: list[int] = workload.output_tokens.tolist()
        self.jobs: list[Job | None] = [None] * n
        """The attempt that is, or was last, on an engine."""
        self._slos = slos
        self._window = (warmup_ns, horizon_ns)
        self._met: Counter[int] = Counter()
        self._record_itl = record_itl
        self._gaps: Counter[int] = Counter()

    @property
    def met(self) -> int:
        """Scored requests that met all objectives so far."""
        return self._met.total()

    def met_by_engine(self, engines: int) -> IntArray:
        """The same by the engine that served the request to its end, one count per engine."""
        return np.array([self._met[engine] for engine in range(engines)], np.int64)

    def is_scored(self, request: int) -> bool:
        """Whether the request's first arrival lies in [warm-up, horizon)."""
        warmup, horizon = self._window
        return warmup <= self.arrival_ns[request] < horizon

    def note_gap(self, request: int, gap_ns: int) -> None:
        """A request emitted a token `gap_ns` after the one before."""
        if self._record_itl and self.is_scored(request):
            self._gaps[gap_ns] += 1

    def view(
        self, request: int, now_ns: int, block_ids: tuple[int, IntArray, IntArray] | None
    ) -> RequestView:
        """A request that has arrived, as its router sees it.

        Args:
            request: its index; -1: none is at a ROUTE point.
            now_ns: the present.
            block_ids: block size, and `Workload.block_ids` of it; `None`: no content is known.

        Raises:
            ValueError: there is no request.
        """
        if request < 0:
            raise ValueError("no request is at a ROUTE point; call advance() first")
        traffic, prompt = self.workload, int(self.workload.prompt_tokens[request])
        hashes = np.empty(0, np.int64)
        if block_ids is not None:
            size, offsets, ids = block_ids
            hashes = ids[int(offsets[request]) :][: prompt // size]
        return RequestView(
            prompt_tokens=prompt,
            arrival_s=now_ns / NS_PER_S,
            session=int(traffic.session[request]),
            slo_class=int(traffic.slo_class[request]),
            priority=int(traffic.priority[request]),
            attempt=self.attempts[request] - 1,
            block_hashes=hashes,
        )

    def finish(self, request: int, now_ns: int) -> None:
        """A request emitted its last token."""
        self.finish_ns[request] = now_ns
        if self.is_scored(request) and self._is_met(request):
            self._met[self.engine[request]] += 1

    def itl(self) -> tuple[IntArray, IntArray]:
        """Distinct gaps between tokens of scored requests (ns, ascending), and their counts."""
        gaps = sorted(self._gaps)
        return np.array(gaps, np.int64), np.array([self._gaps[gap] for gap in gaps], np.int64)

    def log_hash(self, engine_hashes: Iterable[int]) -> str:
        """SHA-256 (16 hex digits) over decisions, routes, first tokens and finishes."""
        digest = hashlib.sha256(np.array(list(engine_hashes), "<u8").tobytes())
        for column in (self.engine, self._of_jobs("first_token_ns", -1), self.finish_ns):
            digest.update(np.array(column, "<i8").tobytes())
        return digest.hexdigest()[:16]

    def records(self) -> RequestRecords:
        """Arrays of everything; call after the episode for final outcomes."""
        return RequestRecords(
            arrival_ns=np.array(self.arrival_ns, np.int64),
            scheduled_ns=np.array(self._of_jobs("scheduled_ns", -1), np.int64),
            first_token_ns=np.array(self._of_jobs("first_token_ns", -1), np.int64),
            finish_ns=np.array(self.finish_ns, np.int64),
            prompt_tokens=self.workload.prompt_tokens.copy(),
            output_tokens=np.array(self.output, np.int64),
            emitted_tokens=np.array(self._of_jobs("generated", 0), np.int64),
            cached_tokens=np.array(self._of_jobs("cached", 0), np.int64),
            preemptions=np.array(self._of_jobs("preemptions", 0), np.int64),
            engine=np.array(self.engine, np.int64),
            outcome=np.array(self.outcome, np.int64),
            slo_class=self.workload.slo_class.copy(),
            session=self.workload.session.copy(),
            attempts=np.array(self.attempts, np.int64),
        )

    def _of_jobs(self, name: str, neutral: int) -> list[int]:
        return [neutral if job is None else getattr(job, name) for job in self.jobs]

    def _is_met(self, request: int) -> bool:
        job = self.jobs[request]
        assert job is not None
        slo = self._slos[job.slo_class]
        arrival, first, finish = self.arrival_ns[request], job.first_token_ns, job.last_token_ns
        decode_gaps = job.generated - 1
        return (
            first - arrival <= _bound(slo.ttft_s)
            and finish - arrival <= _bound(slo.e2e_s)
            and (decode_gaps == 0 or finish - first <= _bound(slo.tpot_s) * decode_gaps)
        )


def _bound(seconds: float | None) -> int:
    return 1 << 62 if seconds is None else round(seconds * NS_PER_S)
