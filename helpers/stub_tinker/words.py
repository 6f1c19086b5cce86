"""The words of the status page: when someone is stuck or waits, spans of time, and text of clients."""

SILENT_SECONDS = 300  # without a request in the middle of training: stuck
WAIT_SECONDS = 10  # with requests in the queue and no turn: waiting
SAME = 3  # failures of the same request in a row, with none in the queue: stuck, though the SDK asks again
STATES = ("stuck", "waiting", "working", "quiet", "not here", "done")  # in the order of the page


def shown(text: str, most: int = 40) -> str:
    """Text of a client on one line, without characters that a page or a terminal obeys, and short."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * most].split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def span(seconds: float) -> str:
    """`12 s`, `7 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds // 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


RULES = (
    f"Stuck: the last request ended in an error, the same one failed {SAME} times in a row with none in the "
    f"queue, or nothing came for {span(SILENT_SECONDS)} in the middle of training. Waiting: requests are in "
    f"the queue, and none had a turn for {WAIT_SECONDS} s. Done: trained to the last step."
)
