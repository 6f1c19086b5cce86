"""What every grader gives back."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What a grader found. `if verdict:` is `if verdict.passed:`.

    Attributes:
        passed: the judgement.
        why: one sentence on it.
        found: the answer read from the model's text; None if there was none.
        expected: the answer read from the reference; None if there was none.
        evidence: lists that back the judgement (equations, missing steps, ...), by name.
    """

    passed: bool
    why: str
    found: str | None = None
    expected: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed
