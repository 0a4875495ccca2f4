"""Peak memory of this process alone.

`ru_maxrss` starts at the memory of the process that started this one, also after exec, so a test
in a large process would measure itself. Linux keeps the peak since exec too.
"""

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Return the peak resident memory of this process, and of the children it waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        assert match is not None
        own = int(match[1]) * unit
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)
