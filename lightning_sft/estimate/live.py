"""What is alive at once while operations run, by the storages of what they return."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class LiveMemory(TorchDispatchMode):
    """Counts bytes of storages from the operation that makes them to the moment when nobody holds them.

    It works on tensors with and without data, so that a step can be tried on tensors that hold none.

    Where a tensor gets several gradients, as a matrix that is embedding and unembedding at once, autograd adds the next
    one to the first in place if nobody else holds that (``accumulate`` in torch/csrc/autograd/input_buffer.cpp). It
    does not while a mode like this one is on. So a sum that could be in place is counted once its parts had time to go.

    Args:
        known: what is there already and is not counted, such as a model's weights.

    Attributes:
        rest: bytes alive now, without gradients.
        gradients: bytes of what was declared a gradient.
        curve: bytes of gradients -> the most of the rest that was alive beside them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]  # held, so that no id is used again
        self._sizes: dict[int, int] = {storage._cdata: 0 for storage in self._known}
        self._gradients: set[int] = set()
        self.rest = self.gradients = 0
        self.curve: dict[int, int] = {}
        self._sum: tuple[int, int] | None = None

    @override
    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._settle()
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        if _could_be_in_place(func, args):
            self._sum = args[0].untyped_storage()._cdata, self.rest
        else:
            self._look()
        return made

    def declare_gradient(self, tensor: Tensor) -> None:
        """Count a tensor as a gradient from here on."""
        self._settle()
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self.rest -= self._sizes[key]
            self.gradients += self._sizes[key]
            self._look()

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._gone, key)
        self.rest += self._sizes[key]

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        if key in self._gradients:
            self._gradients.remove(key)
            self.gradients -= size
        else:
            self.rest -= size

    def _settle(self) -> None:
        """Look at what the last operation left; a sum was not in place if somebody still holds its first part."""
        most, self._sum = self._sum, None
        if most is not None and most[0] in self._sizes:
            self._look(most[1])
        self._look()

    def _look(self, rest: int = 0) -> None:
        self.curve[self.gradients] = max(self.curve.get(self.gradients, 0), self.rest, rest)


def _could_be_in_place(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether an operation is a sum, in a backward pass, that autograd could write into its first part."""
    if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1:
        return False
    first, second = args[:2]
    alike = isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype
    whole = first.is_contiguous() and second.is_contiguous() and not first._is_view()  # a view's base holds it, too
    return alike and whole
