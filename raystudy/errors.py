"""The exception tree.

RaystudyError                 everything raised on purpose; `exit_code` is what the command line returns
├── InputError                bad input, nothing was started                                (2)
│   ├── SpecError             the study file
│   ├── DataError             the images
│   └── BackboneError         the pretrained network or its weights
├── NotFoundError             no study or trial of that name                                (3)
├── UnreachableError          a tracking server or cluster does not answer                  (3)
├── StudyBusyError            another process is running this study                         (2)
├── StudyFailedError          the study ran, and failed                                     (1)
├── StudyInterrupted          stopped by the user or a signal; the state is saved           (130)
├── JournalError              the journal is damaged or belongs to another study            (1)
├── CheckpointError           a checkpoint is damaged or belongs to another model           (1)
└── TrialError                why one trial ended badly; never leaves the study
    ├── Diverged              a non-finite loss or metric
    └── OutOfMemory           the host or the device ran out of memory
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        where: the place: a key path (`factors.learning_rate.log_uniform[0]`) or a file path.
        what: what is wrong, with the value that was found.
        accepted: what would be accepted, or what to do; empty where `what` already says it.
    """

    where: str
    what: str
    accepted: str = ""

    def __str__(self) -> str:
        """Return the one-line form used in messages."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.accepted}" if self.accepted else text


class RaystudyError(Exception):
    """Everything that raystudy raises on purpose."""

    exit_code = 1


class InputError(RaystudyError):
    """Bad input, found before anything was started. Carries every problem, not only the first."""

    exit_code = 2

    def __init__(self, problems: Problem | Sequence[Problem], *, title: str = "") -> None:
        """Collect `problems`; `title` names the input as a whole (a file, a folder)."""
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        self.title = title
        super().__init__(self._render())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole: an exception is rebuilt from its message otherwise."""
        return _rebuilt, (type(self), self.problems, self.title)

    def _render(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if not self.title:
            return "\n".join(lines)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return "\n".join([f"{self.title}: {count}", *(f"  {line}" for line in lines)])


def _rebuilt(kind: type[InputError], problems: list[Problem], title: str) -> InputError:
    return kind(problems, title=title)


class SpecError(InputError):
    """The study file is wrong."""


class DataError(InputError):
    """The images are wrong: unreadable, missing, too few."""


class BackboneError(InputError):
    """The backbone is unknown, or its weights cannot be loaded."""


class NotFoundError(RaystudyError):
    """No study, trial or model of that name."""

    exit_code = 3


class UnreachableError(RaystudyError):
    """A tracking server or a cluster does not answer."""

    exit_code = 3


class StudyBusyError(RaystudyError):
    """Another process is running this study, or its name is taken."""

    exit_code = 2


class StudyFailedError(RaystudyError):
    """The study ran, and no trial gave a result."""


class StudyInterrupted(RaystudyError):
    """The study was stopped before its end; its state is saved and can be resumed."""

    exit_code = 130


class JournalError(RaystudyError):
    """The journal is damaged, or belongs to another study."""


class CheckpointError(RaystudyError):
    """A checkpoint is damaged, or belongs to another model."""


class TrialError(RaystudyError):
    """Why one trial ended badly. The study goes on."""


class Diverged(TrialError):
    """The loss or a metric is not finite."""


class OutOfMemory(TrialError):
    """The host or the device ran out of memory."""
