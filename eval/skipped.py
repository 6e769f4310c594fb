"""What an evaluation could not use, or only in part: never fatal, never silent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

NOT_SCORED = "left out of the score"
WRONG = "scored as wrong"
SCORED = "scored as answered"


@dataclass(frozen=True)
class Skipped:
    """One oddity. id: image, line or sentence. kind: a few words to count by. effect: what it did to the score."""

    id: str
    kind: str
    reason: str
    effect: str = NOT_SCORED

    def row(self) -> dict[str, str]:
        """As results.json has it."""
        return {**asdict(self), "reason": f"{self.kind}: {self.reason} ({self.effect})"}


def skipped_line(skipped: Sequence[Skipped]) -> str:
    """One line: how many of which kind."""
    if not skipped:
        return "nothing was skipped"
    kinds = Counter(f"{one.kind} ({one.effect})" for one in skipped)
    return f"{len(skipped)} skipped or noted: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
