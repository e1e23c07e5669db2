"""When an engine is masked, and when it is let in again."""

from __future__ import annotations

import pytest

from synergy_gym.live.router.health import DOWN_AFTER, Condition, HealthSpec, HealthTable

S = 1_000_000_000
SPEC = HealthSpec(interval_s=5.0, first_backoff_s=0.5, last_backoff_s=4.0, timeout_s=1.0)


class Watched:
    """A table of two engines and the changes that it reported."""

    def __init__(self) -> None:
        self.changes: list[tuple[int, bool]] = []
        self.table = HealthTable(["a", "b"], SPEC, lambda e, up: self.changes.append((e, up)))

    def conditions(self) -> list[str]:
        return [self.table.condition(i).name for i in range(2)]


def test_a_refused_connection_masks_at_once_and_a_probe_lets_in_again() -> None:
    watched = Watched()
    watched.table.failed(0, 0, "refused", refused=True)
    assert watched.conditions() == ["DOWN", "HEALTHY"]
    watched.table.served(0)
    assert watched.conditions() == ["DOWN", "HEALTHY"], "an old answer is no probe"
    watched.table.probed(0, S)
    assert watched.conditions() == ["HEALTHY", "HEALTHY"]
    assert watched.changes == [(0, False), (0, True)]


def test_other_failures_mask_after_several_in_a_row() -> None:
    watched = Watched()
    for _ in range(DOWN_AFTER - 1):
        watched.table.failed(1, 0, "timeout")
    assert watched.conditions() == ["HEALTHY", "SUSPECT"]
    watched.table.served(1)
    assert watched.conditions() == ["HEALTHY", "HEALTHY"]
    for _ in range(DOWN_AFTER):
        watched.table.failed(1, 0, "timeout")
    assert watched.table.condition(1) is Condition.DOWN
    assert watched.changes == [(1, False)], "suspicion is no change"


def test_failures_that_may_be_the_requests_own_never_mask() -> None:
    watched = Watched()
    for _ in range(10 * DOWN_AFTER):
        watched.table.failed(0, 0, "answered 500", counts=False)
    assert watched.conditions()[0] == "SUSPECT"
    assert watched.changes == []
    assert watched.table.due(S) == [0, 1], "but the engine is asked soon"


def test_probes_come_at_their_interval_and_back_off() -> None:
    table = Watched().table
    assert table.due(0) == [0, 1]
    assert table.due(0) == [], "each probe once"
    table.probed(0, 0)
    table.failed(1, 0, "refused", probe=True, refused=True)
    assert table.due(S // 2 - 1) == []
    instants = []
    now_ns = 0
    while len(instants) < 6:
        now_ns += S // 2
        for engine in table.due(now_ns):
            if engine == 0:
                table.probed(0, now_ns)
            else:
                instants.append(now_ns / S)
                table.failed(1, now_ns, "refused", probe=True, refused=True)
    assert instants == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5]


def test_many_requests_that_fail_at_once_do_not_put_the_probe_off() -> None:
    table = Watched().table
    table.due(0)
    for engine in range(2):
        table.probed(engine, 0)
    for _ in range(50):
        table.failed(0, S, "broken connection")
    assert table.due(S + S // 2) == [0]
    table.probed(0, 2 * S)
    table.failed(0, 3 * S, "refused", probe=True, refused=True)
    assert table.due(3 * S + S // 2) == [0], "a good probe ends the backoff"


def test_a_probe_that_never_reports_is_repeated() -> None:
    table = Watched().table
    assert table.due(0) == [0, 1]
    assert table.due(2 * S) == [0, 1]
    assert table.next_probe_ns() == 4 * S


@pytest.mark.parametrize("field", ["interval_s", "first_backoff_s", "last_backoff_s", "timeout_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_intervals_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        HealthSpec(**{field: value})
