"""An event loop in a thread of its own, where a live cluster's connections live.

Clients' timeouts and health checks are punctual there, also while the caller trains an agent.
What happens is put into one queue, in the order in which it was noticed.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from synergy_gym.live.cluster.messages import LiveEvent

Answer = TypeVar("Answer")
LEAVE_S = 5.0
"""Time that tasks get to end when the hub closes, seconds."""


class EventLoopClosedError(RuntimeError):
    """The live cluster was closed; build a new one."""


class EventLoop:
    """A running event loop and the events that its tasks report.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str = "live-cluster") -> None:
        self._events: queue.SimpleQueue[LiveEvent] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; only `call` and `ask` may be used from other threads."""
        return self._loop

    @property
    def is_open(self) -> bool:
        """Whether the loop still runs."""
        return not self._loop.is_closed()

    def emit(self, event: LiveEvent) -> None:
        """Report an event; from any thread."""
        self._events.put(event)

    def next_event(self, until_ns: int) -> LiveEvent | None:
        """The next event, or `None` when there is none by `until_ns` (monotonic clock)."""
        left_s = (until_ns - time.monotonic_ns()) / 1e9
        try:
            return self._events.get(timeout=left_s) if left_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Let the loop call `function` soon; from any thread.

        Raises:
            EventLoopClosedError: the hub is closed.
        """
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:
            raise EventLoopClosedError("this live cluster is closed; build a new one") from error

    def ask(self, work: Coroutine[Any, Any, Answer], timeout_s: float | None = None) -> Answer:
        """The result of a coroutine that runs in the loop; not from the loop's own thread.

        Raises:
            EventLoopClosedError: the hub is closed.
            TimeoutError: it takes longer than `timeout_s`; it is cancelled.
        """
        if not self.is_open:
            work.close()
            raise EventLoopClosedError("this live cluster is closed; build a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task; from the loop's own thread."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Cancel all tasks and end the thread; a second call does nothing."""
        if not self.is_open or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._leave())
        finally:
            self._loop.close()

    async def _leave(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEAVE_S)
        await self._loop.shutdown_asyncgens()
