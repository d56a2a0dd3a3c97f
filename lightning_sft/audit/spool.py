"""What is kept of the first model while the second one is in memory: arrays in a file without a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor

from lightning_sft.errors import UserError


class Spool:
    """Tensors one after the other in a temporary file: exact, and one of them in memory at a time.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[Spool]:
        """Give an empty one; its file is gone when the context ends, however it ends."""
        with TemporaryFile(prefix="lightning-sft-audit-") as file:
            yield cls(file)

    def write(self, tensors: Iterable[Tensor]) -> None:
        """Write tensors in the place of what was there.

        Raises:
            UserError: there is no room for them.
        """
        self._file.seek(0)
        self._file.truncate()
        try:
            for tensor in tensors:
                np.save(self._file, tensor.cpu().numpy())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"What the first model says could not be kept in a temporary file: {error}. Set TMPDIR to a folder "
                "with room, hold both models at once with --together true, or leave the guard set out with --guard "
                "none."
            ) from error

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the tensors in their order."""
        self._file.seek(0)
        while True:
            try:
                yield torch.from_numpy(np.load(self._file))
            except EOFError:
                return
