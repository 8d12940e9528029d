"""Where a trial's randomness comes from.

Every random number of a trial derives from (study seed, trial number, `seed` factor, purpose, index) by hashing, never from
a stream that something else shares. So a trial trains the same whichever worker runs it, whatever ran there before, and
wherever it was interrupted: an epoch or a step is an index, not a position in a stream.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum


class Purpose(StrEnum):
    """What the random numbers are for; each purpose has numbers of its own."""

    BACKBONE = "backbone"
    HEAD = "head"
    PROJECTION = "projection"
    ORDER = "order"
    AUGMENTATION = "augmentation"
    MIXUP = "mixup"
    CUTMIX = "cutmix"
    MIXING = "mixing"
    DROPOUT = "dropout"


@dataclass(frozen=True, slots=True)
class TrialSeeds:
    """The seeds of one trial.

    Attributes:
        study_seed: the study file's `search.seed`.
        number: the trial's number in the study, from 0.
        replicate: the factor `seed`.
    """

    study_seed: int
    number: int
    replicate: int = 0

    def derive(self, purpose: Purpose, index: int = 0) -> int:
        """Return the seed for `purpose` and `index` (a pass, a step or an epoch).

        The first 8 bytes of SHA-256 over the decimal text of all five, less one bit: non-negative, below 2**63.
        """
        text = f"{self.study_seed}/{self.number}/{self.replicate}/{purpose}/{index}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
