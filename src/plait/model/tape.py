"""`Tape`: one decode step of one batch size as a list of native calls over fixed addresses.

The CPU twin of a CUDA graph. A forward of the transformers module is run once while a dispatch mode
looks on: our own ops leave the native calls that they make, torch's elementwise ops are replaced by
native work on the same strides, views need nothing. Every tensor that was seen is kept, so the
addresses stay valid; playing the tape is a loop over the calls. An op that is neither ends the
recording, and the model goes on without tapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plait.kernels import attention, elementwise, ops, pointwise, shared_sum
from plait.kernels.calls import Call, Calls
from plait.kernels.elementwise import Map

aten = torch.ops.aten
VIEWS = {
    *("view", "reshape", "transpose", "permute", "t", "select", "slice", "unsqueeze", "squeeze", "split"),
    *("split_with_sizes", "expand", "detach", "alias", "unbind", "chunk", "to", "contiguous", "narrow"),
    *("unflatten", "flatten", "lift_fresh"),
}
"""Ops that give a view where they can; whether they did is seen from the result."""
FACTORIES = {"ones", "zeros", "full", "arange", "scalar_tensor", "empty"}
"""Ops that make a tensor of nothing but numbers: the same one in every step of a batch size."""
UNARY = {
    "neg": Map.NEG,
    "rsqrt": Map.RSQRT,
    "silu": Map.SILU,
    "relu": Map.RELU,
    "sigmoid": Map.SIGMOID,
    "tanh": Map.TANH,
}
BINARY = {"add": Map.ADD, "mul": Map.MUL, "sub": Map.SUB, "div": Map.DIV}


class CannotRecord(Exception):
    """The forward does something that a tape cannot hold."""


class Tape:
    """Native calls in order, and all that they read and write."""

    __slots__ = ("_calls", "_kept")

    def __init__(self, calls: Sequence[Call], kept: Sequence[object]) -> None:
        self._calls, self._kept = tuple(calls), tuple(kept)

    def __len__(self) -> int:
        return len(self._calls)

    def play(self) -> None:
        """Make all calls again, with what the kept input tensors now contain."""
        for call, args in self._calls:
            call(*args)


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum of two dense tensors of its own shape and type."""

    a: Tensor
    b: Tensor
    out: Tensor
    past: int
    """Calls on the tape once it was made."""


class Within(TorchDispatchMode):
    """Sees what one of our ops does around its native call: memory that it takes, copies that it makes."""

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith(("aten::empty", "aten::new_empty")):
            return func(*args, **(kwargs or {}))
        return self._recorder.__torch_dispatch__(func, types, args, kwargs)


class Recorder(TorchDispatchMode):
    """Carries a forward out and writes it down."""

    def __init__(self, native: Calls, threads: int) -> None:
        super().__init__()
        self._native, self._threads = native, threads
        self._calls: list[Call] = []
        self._kept: list[object] = []
        self._constants: set[int] = set()
        """Storages of tensors that are the same in every step."""
        self._bodies = {**ops.BODIES, **attention.BODIES, **pointwise.BODIES, **shared_sum.BODIES}
        self._pointwise = pointwise.Native()
        self._sum: Sum | None = None
        """The last call, if it was a plain sum."""
        self._special: dict[str, Callable[..., Tensor]] = {
            "pow": self._pow,
            "gelu": self._gelu,
            "mean": self._mean,
            "cat": self._cat,
            "clone": self._copy,
            "embedding": self._embedding,
            "index_select": self._index_select,
            "index": self._index,
            "layer_norm": self._layer_norm,
        }

    def tape(self) -> Tape:
        """What was recorded."""
        return Tape(self._calls, self._kept)

    def then(self, call: Callable[[int], None], number: int) -> None:
        """Here something is called that is no op. It is not called now."""
        self._calls.append((call, (number,)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space == "plait":
            return self._norm_of_sum(*args) if name == "rms_norm" else self._ours(name, args)
        if name in VIEWS:
            return self._view(func, args, kwargs)
        if name in UNARY:
            return self._map(UNARY[name], args[0])
        if name in BINARY and not kwargs:
            return self._map(BINARY[name], *args)
        if name in self._special:
            return self._special[name](*args, **kwargs)
        if name == "dropout" and not args[2]:
            return args[0]
        return self._constant_result(func, name, args, kwargs)

    def _constant_result(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """What depends on constants alone is computed once and for all."""
        tensors = [x for x in args if isinstance(x, Tensor)]
        known = all(x.untyped_storage().data_ptr() in self._constants for x in tensors)
        if name not in FACTORIES and not (tensors and known):
            raise CannotRecord(f"{func} is not among the ops that a tape can hold")
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._constants.add(result.untyped_storage().data_ptr())
        self._kept.append(result)
        return result

    def _ours(self, name: str, args: Any) -> Any:
        with self._native.writing() as calls, Within(self):
            result = self._bodies[name](*args)
        if not calls:
            raise CannotRecord(f"plait::{name} made no native call")
        self._calls += calls
        self._kept += [args, result]
        return result

    def _norm_of_sum(self, x_TN: Tensor, *args: Any) -> Tensor:
        """A norm; one call with the sum before it, where it is the norm of that sum."""
        last = self._sum
        if last is None or len(self._calls) != last.past or x_TN.data_ptr() != last.out.data_ptr():
            return self._ours("rms_norm", (x_TN, *args))
        self._calls.pop()
        a_TN, b_TN, sum_TN = (each.view(x_TN.shape) for each in (last.a, last.b, last.out))
        with self._native.writing() as calls:
            result = self._pointwise.add_rms_norm_into(a_TN, b_TN, sum_TN, *args)
        self._calls += calls
        self._kept += [(a_TN, b_TN, sum_TN, *args), result]
        return result

    def _view(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, list | tuple) else result
        if first.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr():
            self._kept.append(result)
            return result
        # It had to copy: the copy is work for the tape, into what it made.
        source, place = args[0], result.view(args[0].shape) if result.is_contiguous() else result
        if source.dtype not in elementwise.TYPES or place.shape != source.shape:
            raise CannotRecord(f"{func} copies in a way that a tape does not")
        self._do(elementwise.map_work(Map.COPY, place, source, threads=self._threads), place, source, result)
        return result

    def _map(self, kind: Map, a: Tensor, b: Tensor | float | None = None) -> Tensor:
        if not isinstance(a, Tensor):
            raise CannotRecord("a number takes the place of a tensor")
        dtype = a.dtype
        if isinstance(b, Tensor):
            dtype = torch.result_type(a, b)
        elif b is not None:
            b = torch.tensor(float(b))
        both = (a,) if b is None else (a, b)
        if any(x.dtype not in elementwise.TYPES for x in both):
            raise CannotRecord(f"elementwise work on {', '.join(str(x.dtype) for x in both)}")
        sizes = torch.broadcast_shapes(*(x.shape for x in both))
        # As torch does it: the order of the dimensions in memory is that of the first that has them all.
        like = next((x for x in both if x.shape == sizes), both[0])
        out = torch.empty_like(like.expand(sizes), dtype=dtype)
        self._do(elementwise.map_work(kind, out, a, b, self._threads), out, *both)
        if kind == Map.ADD and all(x.shape == sizes and x.is_contiguous() and x.dtype == dtype for x in both):
            self._sum = Sum(*both, out, len(self._calls))
        return out

    def _do(self, work: Any, *tensors: Tensor | None) -> None:
        work()
        self._calls.append((work, ()))
        self._kept.append(tensors)

    def _pow(self, a: Tensor, exponent: Any) -> Tensor:
        if exponent != 2:
            raise CannotRecord(f"a power of {exponent}")
        return self._map(Map.SQUARE, a)

    def _gelu(self, a: Tensor, approximate: str = "none") -> Tensor:
        return self._map(Map.GELU if approximate == "none" else Map.GELU_TANH, a)

    def _copy(self, a: Tensor, memory_format: Any = None) -> Tensor:
        return self._map(Map.COPY, a)

    def _dense(self, a: Tensor) -> Tensor:
        return a if a.is_contiguous() else self._map(Map.COPY, a)

    def _mean(
        self, a: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None
    ) -> Tensor:
        if dims is None or [d % a.dim() for d in dims] != [a.dim() - 1] or dtype not in (None, a.dtype):
            raise CannotRecord("a mean over other than the last dimension")
        a = self._dense(a)
        out = torch.empty(a.shape[:-1] + ((1,) if keepdim else ()), dtype=a.dtype)
        self._do(elementwise.mean_work(out, a), out, a)
        return out

    def _cat(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        shape = list(parts[0].shape)
        shape[dim] = sum(part.shape[dim] for part in parts)
        out = torch.empty(shape, dtype=parts[0].dtype)
        begin = 0
        for part in parts:
            place = out.narrow(dim, begin, part.shape[dim])
            self._do(elementwise.map_work(Map.COPY, place, part, threads=self._threads), place, part)
            begin += part.shape[dim]
        return out

    def _gather(self, table: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
        out = torch.empty(tuple(shape), dtype=table.dtype)
        self._do(elementwise.gather_work(out, table, indices), out, table, indices)
        return out

    def _embedding(self, weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
        return self._gather(weight, indices, (*indices.shape, *weight.shape[1:]))

    def _index_select(self, table: Tensor, dim: int, indices: Tensor) -> Tensor:
        if dim != 0:
            raise CannotRecord("index_select of another dimension than the first")
        return self._gather(table, indices, (*indices.shape, *table.shape[1:]))

    def _index(self, a: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
        if len(indices) != 2 or indices[0] is not None or len(a) != 1 or indices[1] is None:
            raise CannotRecord("an index of another form than [:, rows] of one batch")
        return self._gather(self._dense(a)[0], indices[1], (1, *indices[1].shape, *a.shape[2:]))

    def _layer_norm(
        self,
        a: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        a = self._dense(a)
        if list(shape) != [a.shape[-1]]:
            raise CannotRecord("a LayerNorm over more than the last dimension")
        out = torch.empty_like(a)
        self._do(elementwise.layer_norm_work(out, a, weight, bias, eps), out, a, weight, bias)
        return out
