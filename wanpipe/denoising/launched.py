"""What the commands ask about groups of devices without loading MLX, unless there is a group."""

import os


def serves_another() -> bool:
    """Join the group that mlx.launch has started, if there is one.

    Rank 0 returns at once and carries out its command. Another rank works for it until it ends,
    then returns True.
    """
    if "MLX_RANK" not in os.environ:
        return False
    from wanpipe.denoising.team import join_launched

    leader = join_launched()
    if leader is None:
        return False
    from wanpipe.denoising.worker import serve

    serve(*leader, token="")
    return True


def check_devices(devices: int | None) -> None:
    """Raise UsageError for a number of devices that this host or this process cannot have."""
    if devices is not None:
        from wanpipe.denoising.team import check_count

        check_count(devices)


def group_of(devices: int | None) -> tuple[int, int | None]:
    """Return how many devices compute a step, and the least memory that one of them recommends.

    None stands for what this device recommends.
    """
    if devices is not None or "MLX_RANK" not in os.environ:
        return devices or 1, None
    from wanpipe.denoising.team import joined_team

    team = joined_team()
    return team.size, team.memory
