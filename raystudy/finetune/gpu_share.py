"""What a process may keep on its GPU, which it may share with other trials: its share, not whatever is free at the moment.

Whoever came first would otherwise keep what those who come later need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_USABLE = 0.9
_shares = [1.0]


def take(share: float) -> None:
    """Say how much of a GPU this process has from now on; whole GPUs are 1 each, and so is none at all."""
    _shares[0] = share if 0 < share < 1 else 1.0


def room(device: torch.device) -> int:
    """Return the bytes that this process may still take on `device`."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return room_of(_shares[0], free=free, total=total, held=torch.cuda.memory_reserved(device))


def room_of(share: float, *, free: int, total: int, held: int) -> int:
    """Return what a process with a `share` of a GPU may still take if it holds `held` bytes and `free` bytes are free."""
    if share >= 1:
        return free
    return max(min(free, int(_USABLE * share * total) - held), 0)
