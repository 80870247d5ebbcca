"""What an attention module does once its context is gated, noted operation by operation and done again to another.

Everything before the gate (queries, keys, values, probabilities, the context itself) is then computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .nests import leaves, mapped


@dataclass(frozen=True)
class _Slot:
    """Stands for a tensor that depends on the gated context."""

    index: int


class Tail(TorchDispatchMode):
    """Entered at the gate and left where the module returns: notes each operation that depends on `gated`.

    `watch` is handed the other tensors that go into these operations, before any is written to.
    """

    def __init__(self, context: torch.Tensor, gated: torch.Tensor, watch: Callable[[list[Any]], None]) -> None:
        super().__init__()
        self.context, self._watch, self._repeatable = context, watch, True
        self._steps: list[tuple[Callable[..., Any], Any, Any]] = []
        self._dependent = [gated]  # held meanwhile: no other tensor shall come to lie where one of these lay
        self._output: Any = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do `func`, and note it where an argument depends on the context."""
        slotted = mapped((args, kwargs or {}), self._slotted)
        inputs = list(leaves(slotted))
        depends = any(isinstance(one, _Slot) for one in inputs)
        if depends:
            self._watch(inputs)
        found = func(*args, **(kwargs or {}))
        if depends:
            outputs = list(leaves(found))
            self._repeatable &= all(isinstance(one, torch.Tensor) for one in outputs)
            self._steps.append((func, *slotted))
            self._dependent += [one for one in outputs if isinstance(one, torch.Tensor)]
        return found

    def finish(self, output: Any) -> bool:
        """Take what the module returned; whether it can be done again.

        It cannot where a number was read from a tensor, on which what followed may hang, or where torch saw no way from
        the context to what the module returned.
        """
        self._output = mapped(output, self._slotted)
        self._dependent = []
        return self._repeatable and any(isinstance(one, _Slot) for one in leaves(self._output))

    def again(self, gated: torch.Tensor) -> Any:
        """What the module returns where its gated context is `gated`."""
        dependent = [gated]

        def filled(leaf: Any) -> Any:
            return dependent[leaf.index] if isinstance(leaf, _Slot) else leaf

        for func, args, kwargs in self._steps:
            dependent += leaves(func(*mapped(args, filled), **mapped(kwargs, filled)))
        return mapped(self._output, filled)

    def _slotted(self, leaf: Any) -> Any:
        """A slot for a tensor that depends on the context, by where it lies: torch may wrap it in a new object."""
        if isinstance(leaf, torch.Tensor):
            lies = _place(leaf)
            for index, tensor in enumerate(self._dependent):
                if _place(tensor) == lies:
                    return _Slot(index)
        return leaf


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
