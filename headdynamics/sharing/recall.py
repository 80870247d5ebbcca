"""Memory: what modules computed for one batch, to be had again under other masks.

What a model's stacks, layers and attention modules return under the first mask is remembered, and what stands before
them (embeddings). Under another mask a call is answered from memory where all of this holds:

- no mask differs at a gate that fired inside that call; or it is an attention module, and only its own differs: then
  only what comes after its gate is done again (`replay`);
- its inputs are the remembered ones: the same tensors, or equal ones in the same layout;
- nothing that it was computed from or that it returned was written to since (torch counts the writes to a tensor).

Nothing is assumed of a model's layers: what does not fit simply runs. Calls are never remembered that take what they
may change (a cache, a dict), that changed an attribute, a weight or a buffer, that run with gradients or in training
mode, or that contain a module with somebody else's hooks, which would miss it (transformers hooks a model once its
hidden states were asked for). All of this is for passes that are alike but for the mask: one model, batch and setting.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as of_all_modules

from ..gates import Gate, multipliers
from ..heads import Heads
from .nests import leaves, mapped
from .replay import Tail

UNCHANGING = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)
MOST_CALLS = 32  # of one module: shared layers come to a dozen, generation without a cache to thousands
compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling  # the former since torch 2.3


@dataclass
class Call:
    """One call of a module: its inputs, what it returned, and the blocks whose gates fired inside."""

    module: nn.Module
    inputs: Any
    fired: list[int] = field(default_factory=list)
    output: Any = None
    tail: Tail | None = None
    writes: list[tuple[torch.Tensor, int]] = field(default_factory=list)  # tensors and how often they were written to

    def watch(self, tensors: Iterable[Any]) -> None:
        """Hold for as long as none of these is written to."""
        self.writes += [(one, one._version) for one in tensors if isinstance(one, torch.Tensor)]

    def holds(self) -> bool:
        """Whether nothing that it was computed from or that it returned was written to."""
        return all(tensor._version == writes for tensor, writes in self.writes)


class Memory:
    """The mask in force, and the calls under the first mask after `forget()`.

    `changed`: the blocks whose masks differ from the first.
    """

    def __init__(self, heads: Heads) -> None:
        self.heads = heads
        self.gates: list[Gate] = [functools.partial(self._gate, index) for index in range(len(heads.blocks))]
        self.open: list[Call] = []  # calls that are being remembered, the innermost last
        self.forget()

    def forget(self) -> None:
        """Begin with another batch."""
        self.calls: dict[nn.Module, list[Call]] = {}
        self._first: Sequence[torch.Tensor] = ()

    def mask(self, keep: torch.Tensor) -> None:
        """Multiply heads by `keep` from here on, as `masked` does."""
        self._multipliers = multipliers(self.heads, keep)
        pieces = keep.split(self.heads.sizes, dim=-1)
        self.recording, self.begun = not self._first, False
        self._first = self._first or pieces
        self._whole = [bool((piece == 1).all()) for piece in pieces]
        self.changed = {i for i, (a, b) in enumerate(zip(self._first, pieces, strict=True)) if not torch.equal(a, b)}

    def _gate(self, index: int, context: torch.Tensor) -> torch.Tensor:
        ones = self._whole[index] and context.is_contiguous() and not self.recording  # a tail tells one from the other
        found = context if ones else self._multipliers[index](context)
        self.begun = True
        for call in self.open:
            call.fired.append(index)
        inner = self.open[-1] if self.open else None
        if inner and inner.module is self.heads.blocks[index].module and inner.fired == [index]:
            inner.watch([context])
            inner.tail = Tail(context, found, inner.watch)
            inner.tail.__enter__()  # left where the module returns
        return found

    def answer(self, module: nn.Module, inputs: Any) -> list[Any]:
        """[what `module` returns for these inputs], or [] where that is not known."""
        for call in self.calls.get(module, []):
            if _same(inputs, call.inputs) and call.holds():
                if self.changed.isdisjoint(call.fired):
                    for outer in self.open:
                        outer.fired += call.fired
                    return [mapped(call.output, lambda leaf: leaf)]  # in lists and dicts of its own
                if call.tail and len(call.fired) == 1:
                    return [call.tail.again(self._multipliers[call.fired[0]](call.tail.context))]
        return []

    def remember(self, call: Call, forward: Callable[..., Any]) -> Any:
        """Run a call and keep it where nothing but what it returns shows that it ran."""
        parts = list(call.module.modules())
        before = [_attributes(part) for part in parts]
        call.watch(leaves(call.inputs))
        call.watch(tensor for part in parts for tensor in (*part._parameters.values(), *part._buffers.values()))
        self.open.append(call)
        try:
            output = forward(*call.inputs[0], **dict(call.inputs[1]))
        finally:
            self.open.pop()
            if call.tail:
                call.tail.__exit__(None, None, None)
        call.output = mapped(output, lambda leaf: leaf)
        if all(map(_fits, leaves(output))) and all(map(_unchanged, parts, before)):
            if call.tail and not call.tail.finish(output):
                call.tail = None
            call.watch(leaves(output))
            self.calls.setdefault(call.module, []).append(call)
        return output


class Remembering:
    """Stands in for a module's `forward`.

    `constant`: ids of the hooks that are the same under every mask. `early`: only calls before the first gate are worth
    remembering, for what comes later and is not around a gate is part of something that is.
    """

    def __init__(self, memory: Memory, module: nn.Module, constant: frozenset[int], early: bool) -> None:
        functools.update_wrapper(self, module.forward)  # whoever reads its signature finds the real one
        self.memory, self.module, self.forward = memory, module, module.forward
        self.constant, self.early = constant, early
        self.parts = list(module.modules())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The remembered output where it is known, else that of the module."""
        if compiling():
            return self.forward(*args, **kwargs)
        memory, inputs = self.memory, (args, tuple(kwargs.items()))
        calls = len(memory.calls.get(self.module, []))
        new = memory.recording and calls < MOST_CALLS and not (self.early and memory.begun)
        if not (calls or new) or not self._alike(inputs):
            return self.forward(*args, **kwargs)
        known = memory.answer(self.module, inputs)
        if known:
            return known[0]
        return memory.remember(Call(self.module, inputs), self.forward) if new else self.forward(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model computes for itself."""
        return copy.deepcopy(self.forward, memo)

    def _alike(self, inputs: Any) -> bool:
        """Whether a call with these inputs can be like another one."""
        return not (
            torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or any(part.training for part in self.parts)
            or any(id(hook) not in self.constant for hook in hooks(self.parts))
            or of_all_modules._global_forward_hooks
            or of_all_modules._global_forward_pre_hooks
        ) and all(map(_fits, _in_tuples(inputs)))


def hooks(modules: Iterable[nn.Module]) -> Iterator[Callable[..., Any]]:
    """What runs before and after these modules."""
    for module in modules:
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def is_ours(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one of headdynamics' own."""
    return str(getattr(hook, "__module__", "")).startswith("headdynamics.")


def _in_tuples(nest: Any) -> Iterator[Any]:
    """The leaves of a nest of tuples: a list or a dict is one, for a module may write into it."""
    if isinstance(nest, tuple) and not isinstance(nest, torch.Size):
        for part in nest:
            yield from _in_tuples(part)
    else:
        yield nest


def _fits(leaf: Any) -> bool:
    if type(leaf) in (torch.Tensor, nn.Parameter):
        return leaf.layout is torch.strided and not leaf.is_nested and not leaf.is_inference()
    return isinstance(leaf, UNCHANGING)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a is b or (
            (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device) and torch.equal(a, b)
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _attributes(module: nn.Module) -> dict[Any, Any]:
    return {**vars(module), **module._buffers, **module._parameters}


def _unchanged(module: nn.Module, before: dict[Any, Any]) -> bool:
    now = _attributes(module)
    return now.keys() == before.keys() and all(
        value is now[name] or (isinstance(value, UNCHANGING) and _same(value, now[name]))
        for name, value in before.items()
    )
