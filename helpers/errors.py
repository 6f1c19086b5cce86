"""Errors that users can fix. Each says what is wrong and what to do next, and shows no traceback in a
notebook.
"""

from helpers.text import printable


class CourseError(Exception):
    """Base of every error that is the user's to fix.

    Attributes:
        what: what is wrong, naming the file, line, field or value.
        fix: the next thing to do: a command, a notebook, or a value to change. Empty if `what` says it all.
    """

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what, fix)
        self.what, self.fix = what, fix

    def __str__(self) -> str:
        return printable(f"{self.what}\n→ {self.fix}" if self.fix else self.what)

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(CourseError):
    """Options of a command that don't go together. `course` ends with exit status 2."""


class DataError(CourseError):
    """A data file, line, record or field is not usable."""


class ModelError(CourseError):
    """A base model, adapter or tokenizer is missing, damaged, or of the wrong kind."""


class BackendError(CourseError):
    """The Tinker backend can't be reached, started, or refused the request."""


class RunError(CourseError):
    """A run folder is missing, incomplete, or can't be written."""
