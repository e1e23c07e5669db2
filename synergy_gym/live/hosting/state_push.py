"""State of a hosted engine, pushed to a router after its steps (`docs/telemetry.md`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synergy_gym.live.router.push import PushSender

if TYPE_CHECKING:
    from synergy_gym.live.hosting.host import HostedStep, PolicyHost


class StatePush:
    """A `StepListener` that hands every step to a `PushSender`, which keeps the interval.

    Args:
        sender: sends to the router; closed with the engine.
    """

    def __init__(self, sender: PushSender) -> None:
        self.sender = sender

    def start(self, host: PolicyHost) -> None:
        """Say that the engine is up, and keep saying it while nothing happens."""
        self.sender.told = list(host.told)
        self.sender.started(host.now_ns())
        self.sender.start_pulse(host.now_ns)

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        """The heartbeats end."""
        self.sender.work_came(now_ns)

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        """Push the state that the step has left, unless the last push is too recent."""
        self.sender.told = list(host.told)
        self.sender.policy_failures = host.failed_steps
        self.sender.committed(step.end_ns, host.gauges(), step.ended)

    def close(self) -> None:
        """Send nothing more."""
        self.sender.close()
