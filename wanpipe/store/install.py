"""Puts the durable folder of an entry in its place, in one step, on whatever disk that is."""

import errno
import shutil
from pathlib import Path

from wanpipe.runtime.disk import (
    backup_path,
    fsync,
    fsync_tree,
    make_directory,
    replace_directory,
)


def install(path: Path, target: Path, replace: bool) -> None:
    """Rename a durable draft to the path of its entry, which must be locked. An entry that is there
    stays, unless `replace`: then the draft replaces it in one step.
    """
    make_directory(target.parent)
    try:
        _rename(path, target, replace)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(path, target, replace)
    fsync(target.parent)
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(backup_path(path), ignore_errors=True)


def _rename(path: Path, target: Path, replace: bool) -> None:
    if replace and target.is_dir():
        replace_directory(path, target)
        return
    try:
        path.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _copy(path: Path, target: Path, replace: bool) -> None:
    """Copy a draft beside its entry first: the folder of its stage is on another disk."""
    copy = target.with_name(f".{target.name}.part")
    shutil.rmtree(copy, ignore_errors=True)  # of a killed process
    try:
        shutil.copytree(path, copy)
        fsync_tree(copy)
        _rename(copy, target, replace)
    finally:
        for left in (copy, backup_path(copy)):
            shutil.rmtree(left, ignore_errors=True)
