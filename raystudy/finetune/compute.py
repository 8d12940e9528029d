"""Where and in what precision a trial computes, and what running out of memory looks like there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from raystudy.errors import OutOfMemory, Problem, SpecError

Precision = Literal["float32", "bf16"]

_CPU_ALLOCATOR_MESSAGES = ("can't allocate memory", "not enough memory", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the precision of matrix products and convolutions on it.

    Attributes:
        device: where the model and the batches are.
        precision: `bf16` runs the network under autocast; weights, losses and statistics stay float32 either way.
    """

    device: torch.device
    precision: Precision

    @classmethod
    def choose(cls, device: str = "auto", precision: str = "auto") -> Compute:
        """Return the device and precision that `device` and `precision` ask for.

        `auto` takes a GPU where there is one, and bf16 on a GPU that computes it natively: there it is about twice as
        fast as float32, while on a CPU it is slower.

        Raises:
            SpecError: on a precision that is not known or a device that is not here.
        """
        if precision not in ("auto", "float32", "bf16"):
            raise SpecError(Problem("precision", f"got {precision!r}", "expected one of auto, float32, bf16"))
        chosen = _find_device(device)
        if precision == "auto":
            native = chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return cls(chosen, "bf16" if native else "float32")
        return cls(chosen, "bf16" if precision == "bf16" else "float32")

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a CUDA (or ROCm) GPU."""
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """Return the context under which the network is to be called."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next measures work done rather than work queued."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def reset_peak_memory(self) -> None:
        """Start a new measurement of the peak; a no-op on the CPU."""
        if self.is_gpu:
            torch.cuda.init()  # a fresh process has no statistics to reset
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> dict[str, float]:
        """Return `gpu_peak_gib` since the last reset, or nothing on the CPU."""
        return {"gpu_peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30} if self.is_gpu else {}


@contextmanager
def out_of_memory_as_error() -> Iterator[None]:
    """Turn every way of running out of memory into `OutOfMemory`.

    Raises:
        OutOfMemory: from the original error of the device's allocator, the host's allocator or Python.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory: {_first_line(error)}") from error
    except RuntimeError as error:
        # The CPU allocator has no exception class of its own.
        if any(message in str(error).lower() for message in _CPU_ALLOCATOR_MESSAGES):
            raise OutOfMemory(f"out of memory: {_first_line(error)}") from error
        raise


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(Problem("device", f"got {name!r}", "expected auto, cpu, cuda or cuda:N")) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(Problem("device", f"got {name!r}", f"{torch.cuda.device_count()} GPUs are visible here"))
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
