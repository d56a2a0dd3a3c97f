"""What ends a run from outside: a disk that is full, a rank that is gone. In one line, with the remedy."""

from __future__ import annotations

import errno
import re
from pathlib import Path

#: a full disk, a quota, a limit on file sizes, a read-only filesystem, missing permissions
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
#: something else stands in the way of a path
_NO_FOLDER = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
#: how the libraries of torch.distributed say that the other side of a connection is no more
_PEER_IS_GONE = re.compile(
    r"Connection (closed|reset) by (remote )?peer|Broken pipe|remote process exited|Socket closed|recvValue failed"
)
_GO_ON = "The other ranks were ended, too. Go on with --ckpt_path last."


def what_happened(error: BaseException) -> str | None:
    """Return what an exception says of the world around the run; None if it may be a defect of the program."""
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        place = f" {str(error.filename)!r}" if error.filename else ""
        return (
            f"could not write{place}: {error.strerror}. What stood there before is whole. Make room, or give another "
            "folder (trainer.default_root_dir, the logger's save_dir, data.cache_dir)."
        )
    if isinstance(error, FileNotFoundError) and error.filename and not Path(error.filename).parent.is_dir():
        path = Path(error.filename)
        stays = f" If it was moved, its checkpoints are whole: go on with --ckpt_path THERE/{path.name}."
        return (
            f"could not use {str(path)!r}: there is no folder {str(path.parent)!r}, or no longer."
            f"{stays if path.suffix == '.ckpt' else ''}"
        )
    if isinstance(error, OSError) and error.errno in _NO_FOLDER and error.filename:
        return (
            f"could not use {str(error.filename)!r}: {error.strerror}. A part of this path is a file where a folder is "
            "needed, or the reverse: give another path."
        )
    kind = type(error).__name__
    if kind == "ProcessExitedException":  # torch's, of a rank that was forked or spawned
        how = getattr(error, "signal_name", None) or f"with exit status {getattr(error, 'exit_code', None)}"
        rank = getattr(error, "error_index", "?")
        memory = ", as the system does when memory runs out" if how == "SIGKILL" else ""
        return f"rank {rank} was ended by {how}{memory}. {_GO_ON}"
    if isinstance(error, RuntimeError) and _PEER_IS_GONE.search(str(error)):
        return f"another rank of this run is gone ({_PEER_IS_GONE.search(str(error))[0]}). {_GO_ON}"  # type: ignore[index]
    return None
