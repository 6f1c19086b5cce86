"""What a request ends in when it can't be met.

`status` is the HTTP status of the answer: a 4xx that the SDK raises at once.
"""


class RequestError(Exception):
    """Says which part is wrong and what was expected; the message is sent to the client."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class BadRequest(RequestError):
    """The request itself is wrong."""


class StoreError(RequestError):
    """What it asks of the store is not there, not its own, or not possible."""


class WriteError(StoreError):
    """The disk refused. A 4xx all the same: the SDK would repeat a 5xx for minutes."""
