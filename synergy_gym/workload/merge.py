"""Several workloads as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synergy_gym.types import IntArray
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content, private_content


def merged(parts: Sequence[Workload]) -> Workload:
    """The requests of all parts in order of arrival; ties in order of the parts.

    Sessions and prompt contents of different parts are different.

    Raises:
        ValueError: no part, or one in which requests wait for others (closed loop).
    """
    if not parts:
        raise ValueError("there is nothing to merge; give one workload or more")
    if any(bool((part.after >= 0).any()) for part in parts):
        raise ValueError("closed-loop sessions cannot be merged; use open-loop parts")
    arrival_ns = np.concatenate([part.arrival_ns for part in parts])
    order = np.argsort(arrival_ns, kind="stable")

    def column(name: str) -> IntArray:
        values: IntArray = np.concatenate([getattr(part, name) for part in parts])[order]
        return values

    names = ("prompt_tokens", "output_tokens", "slo_class", "priority")
    return make_workload(
        arrival_ns[order],
        **{name: column(name) for name in names},
        session=_sessions(parts)[order],
        content=_contents(parts, order),
    )


def _sessions(parts: Sequence[Workload]) -> IntArray:
    counts = [int(part.session.max(initial=-1)) + 1 for part in parts]
    firsts = np.cumsum([0, *counts[:-1]])
    columns = [
        np.where(part.session >= 0, part.session + first, -1)
        for part, first in zip(parts, firsts, strict=True)
    ]
    return np.concatenate(columns)


def _contents(parts: Sequence[Workload], order: IntArray) -> Content | None:
    if all(part.content is None for part in parts):
        return None
    contents = [part.content or private_content(len(part)) for part in parts]
    firsts = np.cumsum([0, *(len(content.parent) for content in contents[:-1])])
    pairs = list(zip(contents, firsts, strict=True))
    return Content(
        leaf=np.concatenate([content.leaf + first for content, first in pairs])[order],
        parent=np.concatenate(
            [np.where(c.parent >= 0, c.parent + first, -1) for c, first in pairs]
        ),
        start=np.concatenate([content.start for content in contents]),
    )
