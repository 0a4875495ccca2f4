"""The solvers by the names that `--scheduler` takes: modules with the same three functions.

Loads no MLX: the keys of a run are planned from schedules and orders alone.
"""

from types import ModuleType

from wanpipe.sampling import dpmpp, euler, unipc

SOLVERS: dict[str, ModuleType] = {"unipc": unipc, "dpm++": dpmpp, "euler": euler}
