"""Records in a simulation's memory, as compiled code sees them.

A kernel gets the address of a record and reads `request.prompt_tokens` with one load: there is no
array, so nothing is counted, wrapped or bounds-checked. Integer fields of every width are int64
to the code. A field that says where something else lies is a *place*: bytes from the start of the
record that holds it, so that a copy of the memory is whole wherever it lies.

    world_at = at(WORLD)                                  # the record at an address
    request_of = member(WORLD, "requests", REQUEST)       # request_of(world, r): behind a place
    pool_of = part(ENGINE, "pool", POOL)                  # a record inside a record

Nothing here owns memory: whoever passes an address keeps the memory alive meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)
from numba.np.arrayobj import make_array, populate_array

_BYTE, _INT64 = ir.IntType(8), ir.IntType(64)


class Layout:
    """A named record: its NumPy dtype, and the type by which kernels know it."""

    def __init__(self, name: str, fields: list[tuple[Any, ...]]) -> None:
        self.name = name
        self.dtype = np.dtype(fields, align=True)
        self.size = self.dtype.itemsize
        self.type = RecordType(name, self.dtype)

    def place(self, field: str) -> int:
        """Bytes from the start of the record to `field`."""
        return int(self.dtype.fields[field][1])  # type: ignore[index]


class RecordType(types.Type):  # type: ignore[misc]
    """The address of a record; types of one name are equal."""

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        super().__init__(name=name)


@register_model(RecordType)
class _AddressModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _BYTE.as_pointer())


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    key = RecordType

    def generic_resolve(self, record: Any, name: str) -> Any:
        """Whole numbers are int64 whatever their width."""
        if name not in record.dtype.fields:
            return None
        return types.boolean if record.dtype.fields[name][0].kind == "b" else types.int64


def _field(builder: Any, record: Any, pointer: Any, name: str) -> tuple[Any, Any, int]:
    """(pointer to a field, its dtype, its width in bits)."""
    field, at = record.dtype.fields[name][:2]
    bits = field.itemsize * 8
    place = builder.gep(pointer, [ir.Constant(_INT64, at)])
    return builder.bitcast(place, ir.IntType(bits).as_pointer()), field, bits


@lower_getattr_generic(RecordType)
def _load(context: Any, builder: Any, record: Any, pointer: Any, name: str) -> Any:
    del context
    place, field, bits = _field(builder, record, pointer, name)
    value = builder.load(place)
    if field.kind == "b":
        return builder.trunc(value, ir.IntType(1))
    if bits == 64:
        return value
    return builder.sext(value, _INT64) if field.kind == "i" else builder.zext(value, _INT64)


@lower_setattr_generic(RecordType)
def _store(context: Any, builder: Any, signature: Any, arguments: Any, name: str) -> None:
    record, given = signature.args
    place, field, bits = _field(builder, record, arguments[0], name)
    wanted = types.boolean if field.kind == "b" else types.int64
    value = context.cast(builder, arguments[1], given, wanted)
    if field.kind == "b":
        value = builder.zext(value, _BYTE)
    elif bits < 64:
        value = builder.trunc(value, ir.IntType(bits))
    builder.store(value, place)


def at(layout: Layout) -> Callable[[Any], Any]:
    """The compiled function `address -> record`."""

    @intrinsic
    def record_at(typing: Any, address: Any) -> Any:
        del typing, address

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del context, signature
            return builder.inttoptr(arguments[0], _BYTE.as_pointer())

        return layout.type(types.int64), generate

    return record_at  # type: ignore[no-any-return]


def member(owner: Layout, place: str, target: Layout) -> Callable[[Any, Any], Any]:
    """The compiled function `(owner, i) -> record`: the i-th one behind a place of the owner."""

    @intrinsic
    def record_of(typing: Any, record: Any, index: Any) -> Any:
        del typing, record, index

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start = _load(context, builder, owner.type, arguments[0], place)
            step = builder.mul(arguments[1], ir.Constant(_INT64, target.size))
            return builder.gep(arguments[0], [builder.add(start, step)])

        return target.type(owner.type, types.int64), generate

    return record_of  # type: ignore[no-any-return]


def part(owner: Layout, field: str, target: Layout) -> Callable[[Any], Any]:
    """The compiled function `owner -> record` for a record that lies inside another."""

    @intrinsic
    def record_in(typing: Any, record: Any) -> Any:
        del typing, record

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del context, signature
            return builder.gep(arguments[0], [ir.Constant(_INT64, owner.place(field))])

        return target.type(owner.type), generate

    return record_in  # type: ignore[no-any-return]


@intrinsic
def address_of(typing: Any, record: Any) -> Any:
    """Where a record lies."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ptrtoint(arguments[0], _INT64)

    return types.int64(record), generate


@intrinsic
def prefetch(typing: Any, record: Any) -> Any:
    """Ask for a record's cache line ahead of its use; the record need not exist."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        int32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), int32, int32, int32])
        called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # For writing, to be kept in all levels, of the data cache.
        builder.call(called, [arguments[0], *(ir.Constant(int32, n) for n in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(record), generate


@intrinsic
def copy(typing: Any, target: Any, source: Any) -> Any:
    """Make one record equal to another of its layout."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = ir.Constant(_INT64, signature.args[0].dtype.itemsize)
        cgutils.raw_memcpy(builder, arguments[0], arguments[1], size, 1)
        return context.get_dummy_value()

    return types.void(target, source), generate


def _array(context: Any, builder: Any, result: Any, pointer: Any, size: Any) -> Any:
    """A contiguous array without an owner."""
    made = make_array(result)(context, builder)
    item = context.get_constant(types.intp, result.dtype.bitwidth // 8)
    data = builder.bitcast(pointer, context.get_data_type(result.dtype).as_pointer())
    populate_array(made, data=data, shape=[size], strides=[item], itemsize=item, meminfo=None)
    return made._getvalue()


def _array_at(kind: Any) -> Any:
    """The compiled function `(address, count) -> array` without an owner."""

    @intrinsic
    def array(typing: Any, address: Any, size: Any) -> Any:
        del typing, address, size

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], _BYTE.as_pointer())
            return _array(context, builder, signature.return_type, pointer, arguments[1])

        return types.Array(kind, 1, "C")(types.int64, types.int64), generate

    return array


int64s = _array_at(types.int64)
float32s = _array_at(types.float32)


def vector(owner: Layout, place: str, size: str, kind: Any = types.int64) -> Callable[[Any], Any]:
    """The compiled function `owner -> array`; place and number of values are fields."""

    @intrinsic
    def vector_of(typing: Any, record: Any) -> Any:
        del typing, record

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start = _load(context, builder, owner.type, arguments[0], place)
            count = _load(context, builder, owner.type, arguments[0], size)
            pointer = builder.gep(arguments[0], [start])
            return _array(context, builder, signature.return_type, pointer, count)

        return types.Array(kind, 1, "C")(owner.type), generate

    return vector_of  # type: ignore[no-any-return]
