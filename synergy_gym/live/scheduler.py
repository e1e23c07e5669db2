"""vLLM's V1 scheduler with an engine policy inside: what `--scheduler-cls` names.

    SYNERGY_GYM_POLICY=lens-plus python -m vllm.entrypoints.openai.api_server ...
        --scheduler-cls synergy_gym.live.scheduler.PolicyScheduler --no-async-scheduling

With asynchronous scheduling name `AsyncPolicyScheduler` instead. The environment variables are
those of `host_settings`; in one process `with_host` takes a function that builds the host.
vLLM is imported right here: this module is loaded by vLLM, or after `load_vllm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from synergy_gym.live.hosting.build import host_from_environment
from synergy_gym.live.hosting.host import PolicyHost


class _Hosted:
    """Calls the host around vLLM's own methods; mixed in before a scheduler of vLLM.

    Attributes:
        host: the policy at work.
    """

    make_host: ClassVar[Callable[[Any], PolicyHost]] = staticmethod(host_from_environment)
    asynchronous: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_mode()
        self.host = type(self).make_host(self)

    def add_request(self, request: Any) -> None:
        """Queue a request, and keep when it arrived and what class it is of."""
        super().add_request(request)  # type: ignore[misc]
        self.host.added(request)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """End requests from outside (aborts)."""
        ended = super().finish_requests(request_ids, finished_status)  # type: ignore[misc]
        self.host.left([request.request_id for request in ended])
        return ended

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step's batch, as the policy decides."""
        self.host.before_schedule()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self.host.after_schedule(output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in what the model answered."""
        end_ns = self.host.now_ns()
        results = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        self.host.step_ended(scheduler_output, results, end_ns)
        return results

    def shutdown(self) -> None:
        """Close what the host's listeners hold, then vLLM's own."""
        self.host.close()
        super().shutdown()  # type: ignore[misc]

    def _check_mode(self) -> None:
        config: Any = self.scheduler_config  # type: ignore[attr-defined]
        if bool(config.async_scheduling) == self.asynchronous:
            return
        here = f"{__name__}."
        if self.asynchronous:
            raise ValueError(
                "AsyncPolicyScheduler needs asynchronous scheduling, which is off here (vLLM turns "
                f"it off on processors); use --scheduler-cls {here}PolicyScheduler"
            )
        raise ValueError(
            "PolicyScheduler cannot run with asynchronous scheduling; add --no-async-scheduling, "
            f"or use --scheduler-cls {here}AsyncPolicyScheduler"
        )


class PolicyScheduler(_Hosted, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler under an engine policy, for `--no-async-scheduling`."""


class AsyncPolicyScheduler(_Hosted, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler under an engine policy.

    The policy decides on a step while the one before it is in flight: it sees computed tokens as
    they will be then, and learns a step's time one decision later.
    """

    asynchronous = True


def with_host(make_host: Callable[[Any], PolicyHost], base: Any = PolicyScheduler) -> Any:
    """A scheduler class whose host `make_host(scheduler)` builds.

    Args:
        make_host: called with the scheduler before its first request.
        base: `PolicyScheduler` or `AsyncPolicyScheduler`.
    """
    return type(base.__name__, (base,), {"make_host": staticmethod(make_host)})
