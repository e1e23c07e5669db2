"""Counting output tokens in an answer that passes by, without holding it up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_LINE_BYTES = 1 << 22


@dataclass(slots=True)
class StreamReader:
    """Reads server-sent events from chunks as they come.

    Attributes:
        tokens: output tokens so far. A chunk of a choice is one token (vLLM sends one per step),
            unless it says more with `token_ids`; `usage.completion_tokens` replaces the count.
        finished: the stream said `[DONE]`.
        error: text of the engine's error event, empty without one.
    """

    tokens: int = 0
    finished: bool = False
    error: str = ""
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes; events may be cut anywhere."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
        if len(self._rest) > MAX_LINE_BYTES:  # no event is that long; do not hoard it
            self._rest = b""

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.finished = True
            return
        try:
            fields = json.loads(data)
        except ValueError:
            return  # not ours to judge: the client gets it as it is
        if not isinstance(fields, dict):
            return
        if fields.get("error"):
            self.error = str(fields["error"])
        choices = fields.get("choices")
        if isinstance(choices, list):
            self.tokens += sum(_tokens_of(choice) for choice in choices)
        self.tokens = completion_tokens(fields, self.tokens)


def completion_tokens(fields: Any, default: int = 0) -> int:
    """`usage.completion_tokens` of an answer or event, or the default."""
    usage = fields.get("usage") if isinstance(fields, dict) else None
    told = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return told if type(told) is int and told >= 0 else default


def answer_tokens(body: bytes) -> int:
    """Output tokens of an answer that was not streamed; 0 when it does not say."""
    try:
        return completion_tokens(json.loads(body))
    except ValueError:
        return 0


def error_event(message: str, kind: str) -> bytes:
    """An event that tells the client why its stream ends."""
    error = {"error": {"message": message, "type": kind, "code": 502}}
    return b"data: " + json.dumps(error).encode() + b"\n\n"


def _tokens_of(choice: Any) -> int:
    if not isinstance(choice, dict):
        return 0
    ids = choice.get("token_ids")
    if isinstance(ids, list):
        return len(ids)
    delta = choice.get("delta")
    if isinstance(delta, dict):  # chat: the first event holds the role only
        return int(any(value for name, value in delta.items() if name != "role"))
    return 1
