"""`elsewhere("mps")`: a GPU that is not there. Tensors made before are on it, and it refuses what the real one does.

Values are computed on the CPU; what is kept is where each storage would lie. `tensor.device` tells that place, and
tensors go from place to place by `.to`, `.cpu` and `device=`. Refused, as by the hardware: an operation on tensors of
two places, numpy of what is not on the host, and on Apple's GPUs float64.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu")
TENSOR = torch.Tensor
MAKE = "arange empty empty_like eye full full_like linspace ones ones_like rand randint randn zeros zeros_like".split()
MAKE_LIKE = "new_empty new_full new_ones new_zeros".split()
ATTEND = "scaled_dot_product_attention"
READ = ("as_tensor", "from_numpy", "tensor")
#: what takes masks and indices from the host, or copies from place to place
BETWEEN = {f"aten::{name}" for name in "index index_put index_put_ _index_put_impl_ index_fill_ copy_".split()}


class Places(TorchDispatchMode):
    """Which storages are on the host, watched over every operation, those of backward passes too."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.made_on, self.reading = torch.device(device, 0), HOST, False  # for now
        self._host: dict[int, Any] = {}  # holds them, so that no later storage has the address of an earlier one

    def of(self, tensor: torch.Tensor) -> torch.device:
        return HOST if tensor.untyped_storage()._cdata in self._host else self.device

    def put(self, tensor: torch.Tensor, place: torch.device) -> None:
        storage = tensor.untyped_storage()
        if place == HOST:
            self._host[storage._cdata] = storage
            return
        self._host.pop(storage._cdata, None)
        if self.device.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    @contextlib.contextmanager
    def making(self, place: torch.device) -> Iterator[None]:
        """What is made of nothing meanwhile lies there."""
        before, self.made_on = self.made_on, place
        try:
            yield
        finally:
            self.made_on = before

    def named(self, device: Any) -> torch.device:
        return HOST if device is None or torch.device(device).type == "cpu" else self.device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, TENSOR)]
        if self.reading:  # what is read is nowhere yet
            return func(*args, **(kwargs or {}))
        found = {self.of(tensor) for tensor in given if tensor.dim()}  # a single number may come from anywhere
        if len(found) > 1 and func._schema.name not in BETWEEN:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found two")
        found = found or set(map(self.of, given)) or {self.made_on}
        place = self.device if self.device in found else HOST
        before = {tensor.untyped_storage()._cdata for tensor in given}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, TENSOR) and tensor.untyped_storage()._cdata not in before:
                self.put(tensor, place)
        return out


class Moved(torch.autograd.Function):
    """A copy in another place; its gradient comes back to where the tensor was."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, places: Places, place: torch.device) -> torch.Tensor:
        ctx.places, ctx.back = places, places.of(tensor)
        copy = tensor.clone()
        places.put(copy, place)
        return copy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return moved(gradients[0], ctx.places, ctx.back), None, None


def moved(tensor: torch.Tensor, places: Places, place: torch.device) -> torch.Tensor:
    return tensor if places.of(tensor) == place else Moved.apply(tensor, places, place)


@contextlib.contextmanager
def elsewhere(device: str) -> Iterator[None]:
    """Let every tensor made before be on this device."""
    places = Places(device)
    with contextlib.ExitStack() as stack:
        for owner, name, new in _patches(places):
            stack.enter_context(mock.patch.object(owner, name, new))
        stack.enter_context(places)
        yield


def _patches(places: Places) -> Iterator[tuple[Any, str, Any]]:
    """What python code asks torch about places: (where it stands, its name, what stands there meanwhile)."""
    yield TENSOR, "device", property(places.of)
    yield TENSOR, "cpu", lambda tensor: moved(tensor, places, HOST)
    yield TENSOR, "to", functools.partialmethod(_to, TENSOR.to, places)
    yield TENSOR, "numpy", functools.partialmethod(_numpy, TENSOR.numpy, places)
    for owner, names in ((torch, MAKE), (TENSOR, MAKE_LIKE)):
        for name in names:
            yield owner, name, _making(getattr(owner, name), places)
    yield torch.nn.functional, ATTEND, _attending(getattr(torch.nn.functional, ATTEND), places)
    for name in READ:
        yield torch, name, _reading(getattr(torch, name), places)


def _to(tensor: torch.Tensor, original: Any, places: Places, *asked: Any, **named: Any) -> torch.Tensor:
    given = [*asked, *named.values()]
    other = next((x for x in given if isinstance(x, TENSOR)), None)
    device = next((x for x in given if isinstance(x, (str, torch.device))), None)
    dtype = next((x for x in given if isinstance(x, torch.dtype)), None)
    if other is not None:
        device, dtype = places.of(other), other.dtype
    there = tensor if device is None else moved(tensor, places, places.named(device))
    return there if dtype is None else original(there, dtype)


def _numpy(tensor: torch.Tensor, original: Any, places: Places, **options: Any) -> Any:
    if places.of(tensor) != HOST:
        raise TypeError(f"can't convert {places.device} device type tensor to numpy. Use Tensor.cpu() first")
    return original(tensor, **options)


def _making(original: Callable[..., Any], places: Places) -> Callable[..., Any]:
    @functools.wraps(original)
    def made(*args: Any, device: Any = None, **options: Any) -> Any:
        with places.making(places.named(device)):
            new = original(*args, **options)
        if device is not None:
            places.put(new, places.named(device))
        return new

    return made


def _attending(original: Callable[..., Any], places: Places) -> Callable[..., Any]:
    @functools.wraps(original)
    def attended(query: torch.Tensor, *args: Any, **options: Any) -> Any:
        with places.making(places.of(query)):  # its mask of the future, where it makes one
            return original(query, *args, **options)

    return attended


def _reading(original: Callable[..., Any], places: Places) -> Callable[..., Any]:
    @functools.wraps(original)
    def read(values: Any, *args: Any, device: Any = None, **options: Any) -> Any:
        if isinstance(values, TENSOR):
            return moved(original(values, *args, **options), places, places.named(device) if device else values.device)
        places.reading = True
        try:
            new = original(values, *args, **options)
        finally:
            places.reading = False
        places.put(new, places.named(device))
        return new

    return read
