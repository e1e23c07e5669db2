"""The KV block pool, compiled: what `synergy_gym.sim.plain.cache` does, with spans for blocks.

A *span* is a stretch of blocks whose contents follow each other in a hash chain, which have the
same holders, and which lie side by side in the free queue while they are free. Which physical
block it is that has a content shows nowhere: what shows is how many blocks are free, in which order
contents are given up, and whether the oldest block of a content is free. So it is exact to keep

- the free queue as a count of blocks without content, which always lie in front, then spans. The
  last block of a request is released first, so eviction takes the end of the first span;
- the map by the first content of spans alone. An id stands for all that goes before it, therefore
  two prompts are equal up to some place and nowhere behind it. Spans that share a content are cut
  to be equal (`_split`): then a content is either the first of a span, or it lies behind its
  predecessor in every span that has that;
- no look at the map for what cannot be there: whoever holds a block holds all before it, and
  releases it before those. So what follows a content that is not there is not there either, and
  what follows a content that one request has filled and nobody else has had is new;
- no note of what such a request fills next, once it decodes. Its last span is `alone` and as long
  as the request has tokens: that is worked out when somebody else meets it (`_lengthen`).

A request's row of the table has the last of its spans, then one number per block: the span that
begins there where the request got one, else 0. Spans that were cut later are found through `rest`.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.decodes import computed_tokens, phase_of_decode
from synergy_gym.sim.compiled.layout import DECODE
from synergy_gym.sim.compiled.reach import (
    block_id_of,
    block_offset_of,
    bucket_head_of,
    detail_of,
    pool_of,
    request_of,
    seat_of,
    span_of,
    table_of,
)

_MIXER = 0x9E3779B97F4A7C15


@inner
def reset(pool):  # type: ignore[no-untyped-def]
    """Make every remaining block free and forget all content; nobody holds a row."""
    pool.owed = 0
    pool.free = pool.total
    if not pool.caching:
        return
    pool.plain = pool.total
    pool.first_free = pool.last_free = pool.made = pool.spare = 0
    for i in range(pool.map_mask + 1):
        bucket_head_of(pool, i).value = 0


@inner
def reset_seats(pool, seats):  # type: ignore[no-untyped-def]
    """Make all rows of the table free."""
    for i in range(seats):
        seat_of(pool, i).value = i
    pool.num_seats = seats


@inner
def full_blocks(pool, tokens):  # type: ignore[no-untyped-def]
    """Blocks that `tokens` tokens fill."""
    if pool.block_shift >= 0:
        return tokens >> pool.block_shift
    return tokens // pool.block_size


@inner
def blocks_for(pool, tokens):  # type: ignore[no-untyped-def]
    """Blocks that hold `tokens` tokens."""
    return full_blocks(pool, tokens + pool.block_size - 1)


@inner
def lose(pool, blocks):  # type: ignore[no-untyped-def]
    """Shrink the pool by `blocks`; they disappear as they become free."""
    lost = min(blocks, pool.total)
    pool.total -= lost
    pool.owed += lost


@inner
def settle(world, pool):  # type: ignore[no-untyped-def]
    """Give up owed blocks from the front of the free queue, as far as there are any."""
    if pool.owed > 0:
        given = min(pool.owed, pool.free)
        pool.owed -= given
        if pool.caching:
            take(world, pool, given)
        else:
            pool.free -= given


@inner
def lookup(world, engine, ids, most):  # type: ignore[no-untyped-def]
    """Leading blocks of the `most` ids from `ids` on that are cached: (hits, hits lying free)."""
    hits, idle, pool = 0, 0, pool_of(engine)
    while hits < most:
        number = _find(pool, block_id_of(world, ids + hits).value)
        if number == 0:
            break
        span = span_of(pool, number)
        same = _common(world, engine, span, ids + hits, most - hits)
        if span.references == 0:
            idle += same
        hits += same
    return hits, idle


@inner
def adopt(world, engine, row, ids, hits):  # type: ignore[no-untyped-def]
    """Take a reference on the cached blocks that `lookup` has counted; the row is empty."""
    number, done, pool = 0, 0, pool_of(engine)
    while done < hits:
        number = _find(pool, block_id_of(world, ids + done).value)
        span = span_of(pool, number)
        same = _common(world, engine, span, ids + done, hits - done)
        if same < span.length:
            _split(world, pool, number, same)
        if span.references == 0:
            _queue_unlink(pool, number)
            pool.free -= same
        span.references += 1
        _meet(world, engine, span)
        table_of(pool, row + 1 + done).value = number
        done += same
    table_of(pool, row).value = number


@inner
def take(world, pool, wanted):  # type: ignore[no-untyped-def]
    """Hand out blocks from the front of the free queue; their content is gone."""
    pool.free -= wanted
    plain = min(wanted, pool.plain)
    pool.plain -= plain
    wanted -= plain
    while wanted > 0:
        number = pool.first_free
        span = span_of(pool, number)
        if span.length > wanted:
            kept = span.length - wanted
            if span.same_previous == number:
                span.length = kept
                return
            _split(world, pool, _find(pool, span.content), kept)
            number = pool.first_free  # the end, which lies in front of what is kept
            span = span_of(pool, number)
        wanted -= span.length
        _queue_unlink(pool, number)
        _forget(pool, number, span)
        span.queue_next = pool.spare
        pool.spare = number


@inner
def fill(world, engine, r, full, wanted):  # type: ignore[no-untyped-def]
    """Note that blocks `full` to `wanted` of a request will be full of their content."""
    pool, detail = pool_of(engine), detail_of(world, r)
    row = detail.seat * pool.row_width
    if detail.looks:
        _fill_beside(world, engine, r, row, full, wanted)
    else:
        number = table_of(pool, row).value
        while not span_of(pool, number).alone:
            number = span_of(pool, number).rest
        span = span_of(pool, number)
        span.length = wanted - span.begin


@inner
def _fill_beside(world, engine, r, row, full, wanted):  # type: ignore[no-untyped-def]
    """`fill` where others may have filled blocks with the same content."""
    pool, ids = pool_of(engine), block_offset_of(world, r).value
    number = _last(pool, row, full)
    while full < wanted:
        other = _find(pool, block_id_of(world, ids + full).value)
        if other == 0:
            break
        first = span_of(pool, other)
        same = _common(world, engine, first, ids + full, wanted - full)
        if same < first.length:
            _split(world, pool, other, same)
        _meet(world, engine, first)
        number = _begin(world, pool, row, ids, full, same)
        _enter(pool, number, other)
        full += same
    if full < wanted:
        span = span_of(pool, number)
        if number != 0 and span.references == 1 and span.same_previous == number:
            span.ids = ids + full - span.length  # they may have been another's, who goes on apart
            span.length += wanted - full
        else:
            number = _begin(world, pool, row, ids, full, wanted - full)
            _enter(pool, number, 0)
        _part(world, engine, span_of(pool, number), r)
    table_of(pool, row).value = number


@inner
def _part(world, engine, span, r):  # type: ignore[no-untyped-def]
    """The last span of a request ends with what nobody else has, nor what follows it."""
    span.alone, span.holder = True, r
    detail_of(world, r).looks = False
    request = request_of(world, r)
    if request.state == DECODE:
        phase_of_decode(engine, request).looking -= 1


@inner
def _meet(world, engine, span):  # type: ignore[no-untyped-def]
    """Another request has the contents of a span."""
    if span.alone:
        span.alone = False
        detail_of(world, span.holder).looks = True
        request = request_of(world, span.holder)
        if request.state == DECODE:
            phase_of_decode(engine, request).looking += 1


@inner
def release(pool, row, full, count):  # type: ignore[no-untyped-def]
    """Drop one reference on each of a request's `count` blocks, of which `full` have content.

    Blocks without content return to the front of the free queue, cached ones to its end with the
    last one first: a span is put before those that precede it in the request.
    """
    pool.plain += count - full
    pool.free += count - full
    before, number, done = pool.last_free, 0, 0
    while done < full:
        begun = table_of(pool, row + 1 + done)
        number = begun.value if begun.value != 0 else span_of(pool, number).rest
        begun.value = 0
        span = span_of(pool, number)
        if span.alone:
            span.alone, span.length = False, full - done
        done += span.length
        span.references -= 1
        if span.references == 0:
            pool.free += span.length
            _queue_insert(pool, number, before)
    # Of an engine that goes down in the middle of an iteration, the last span may not be counted.
    last = table_of(pool, row)
    table_of(pool, row + 1 + span_of(pool, last.value).begin).value = 0
    last.value = 0


@inner
def _common(world, engine, span, ids, most):  # type: ignore[no-untyped-def]
    """How many blocks of a span have the ids from `ids` on, at most `most`; the first one does.

    Its length is brought up to date.
    """
    if span.alone:
        _lengthen(world, engine, span)
    low, high = 0, min(span.length, most) - 1
    if _equal(world, span.ids + high, ids + high):
        return high + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _equal(world, span.ids + middle, ids + middle):
            low = middle
        else:
            high = middle
    return high


@inner
def _lengthen(world, engine, span):  # type: ignore[no-untyped-def]
    """What a decode has filled since somebody looked; nobody writes it down while it is alone."""
    request = request_of(world, span.holder)
    if request.state == DECODE:
        tokens = computed_tokens(engine, request) + engine.ahead
        span.length = max(span.length, full_blocks(pool_of(engine), tokens) - span.begin)


@inner
def _equal(world, one, other):  # type: ignore[no-untyped-def]
    return block_id_of(world, one).value == block_id_of(world, other).value


@inner
def _last(pool, row, full):  # type: ignore[no-untyped-def]
    """The span of a request that ends with its block `full`, 0 if it has none; it is not alone."""
    number = table_of(pool, row).value
    span = span_of(pool, number)
    while span.begin + span.length < full:
        number = span.rest
        span = span_of(pool, number)
    return number


@inner
def _begin(world, pool, row, ids, full, length):  # type: ignore[no-untyped-def]
    """A new span of a request, from its block `full` on."""
    number = _unused(pool)
    span = span_of(pool, number)
    span.ids, span.begin, span.length = ids + full, full, length
    span.content = block_id_of(world, ids + full).value
    span.references, span.alone = 1, False
    table_of(pool, row + 1 + full).value = number
    return number


@inner
def _unused(pool):  # type: ignore[no-untyped-def]
    """A span that nobody uses."""
    number = pool.spare
    if number == 0:
        pool.made += 1
        return pool.made
    pool.spare = span_of(pool, number).queue_next
    return number


@inner
def _split(world, pool, number, kept):  # type: ignore[no-untyped-def]
    """Cut a span, the oldest of its content, and all its equals behind `kept` blocks."""
    first = 0
    while number != 0:
        span, end = span_of(pool, number), _unused(pool)
        other = span_of(pool, end)
        other.ids, other.begin = span.ids + kept, span.begin + kept
        other.length, span.length = span.length - kept, kept
        other.content = block_id_of(world, other.ids).value
        other.references = span.references
        other.alone, other.holder, span.alone = span.alone, span.holder, False
        other.rest, span.rest = span.rest, end
        if span.references == 0:
            _queue_insert(pool, end, span.queue_previous)
        _enter(pool, end, first)
        if first == 0:
            first = end
        number = span.same_next


@inner
def _forget(pool, number, span):  # type: ignore[no-untyped-def]
    """A span is no longer one of its content."""
    following = span.same_next
    if span.same_previous == number:
        _replace_in_bucket(pool, number, span, 0)
        return
    oldest = _find(pool, span.content)
    if oldest == number:
        _replace_in_bucket(pool, number, span, following)
        span_of(pool, following).same_previous = span.same_previous
    else:
        span_of(pool, span.same_previous).same_next = following
        after = following if following != 0 else oldest
        span_of(pool, after).same_previous = span.same_previous


@inner
def _replace_in_bucket(pool, number, span, following):  # type: ignore[no-untyped-def]
    """The next of the same content (0: none) stands for it from now on."""
    behind = span.bucket_next
    if following != 0:
        span_of(pool, following).bucket_next = behind
        behind = following
    head = _bucket(pool, span.content)
    if head.value == number:
        head.value = behind
        return
    before = span_of(pool, head.value)
    while before.bucket_next != number:
        before = span_of(pool, before.bucket_next)
    before.bucket_next = behind


@inner
def _queue_unlink(pool, number):  # type: ignore[no-untyped-def]
    span = span_of(pool, number)
    before, behind = span.queue_previous, span.queue_next
    if before == 0:
        pool.first_free = behind
    else:
        span_of(pool, before).queue_next = behind
    if behind == 0:
        pool.last_free = before
    else:
        span_of(pool, behind).queue_previous = before


@inner
def _queue_insert(pool, number, before):  # type: ignore[no-untyped-def]
    """Put a span behind another one in the free queue, or (0) to its front."""
    behind = pool.first_free if before == 0 else span_of(pool, before).queue_next
    span = span_of(pool, number)
    span.queue_previous, span.queue_next = before, behind
    if before == 0:
        pool.first_free = number
    else:
        span_of(pool, before).queue_next = number
    if behind == 0:
        pool.last_free = number
    else:
        span_of(pool, behind).queue_previous = number


@inner
def _bucket(pool, content):  # type: ignore[no-untyped-def]
    """Where the map begins to look for a content."""
    mixed = np.uint64(content) * np.uint64(_MIXER)
    return bucket_head_of(pool, np.int64(mixed >> np.uint64(24)) & pool.map_mask)


@inner
def _find(pool, content):  # type: ignore[no-untyped-def]
    """The oldest span that begins with a content, or 0."""
    number = _bucket(pool, content).value
    while number != 0:
        span = span_of(pool, number)
        if span.content == content:
            break
        number = span.bucket_next
    return number


@inner
def _enter(pool, number, oldest):  # type: ignore[no-untyped-def]
    """A span becomes the newest of its content; the oldest one is given, 0 if there is none."""
    span = span_of(pool, number)
    span.same_next = 0
    if oldest == 0:
        head = _bucket(pool, span.content)
        span.bucket_next, span.same_previous = head.value, number
        head.value = number
        return
    first = span_of(pool, oldest)
    span.same_previous = first.same_previous
    span_of(pool, first.same_previous).same_next = number
    first.same_previous = number
