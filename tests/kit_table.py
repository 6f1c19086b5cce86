"""What a run of the conformance kit found, as a table by feature."""

from typing import Any

ORDER = ("failed", "error", "skipped", "passed")  # of a feature's tests, the first that occurred tells
SAYS = {"failed": "fails", "error": "fails", "skipped": "not tried", "passed": "works"}


def feature(report: Any) -> str:
    """What a test is about: a method of the SDK in both of its forms, or a sentence."""
    name = report.nodeid.rpartition("::")[2]
    if name.startswith("test_method["):
        return name.removeprefix("test_method[").removesuffix("]").removesuffix("_async")
    return name.partition("[")[0].removeprefix("test_").replace("_", " ")


def why(report: Any) -> str:
    """One line on what went wrong, or why it was not tried."""
    if report.outcome == "skipped":
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).splitlines()[0][:120]


def table(stats: dict[str, list[Any]]) -> list[str]:
    """A row for each feature."""
    rows: dict[str, tuple[str, str]] = {}
    for outcome in ORDER:
        for report in stats.get(outcome, []):
            told = "" if outcome == "passed" else why(report)
            rows.setdefault(feature(report), (SAYS[outcome], told))
    width = max(map(len, rows), default=0)
    return [f"{name:{width}}  {result:9}  {told}".rstrip() for name, (result, told) in sorted(rows.items())]
