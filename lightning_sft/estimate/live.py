"""What is alive at once while operations run, by the storages of what they return."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class LiveMemory(TorchDispatchMode):
    """Counts bytes of storages from the operation that makes them to the moment when nobody holds them.

    It works on tensors with and without data, so that a step can be tried on tensors that hold none.

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

    @override
    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def declare_gradient(self, tensor: Tensor) -> None:
        """Count a tensor as a gradient from here on."""
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
        self._look()

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        if key in self._gradients:
            self._gradients.remove(key)
            self.gradients -= size
        else:
            self.rest -= size

    def _look(self) -> None:
        self.curve[self.gradients] = max(self.curve.get(self.gradients, 0), self.rest)
