"""Sets, lists, tuples and intervals: an answer of several parts."""

import re

_OPEN, _CLOSE = "([⟦{", ")]⟧}"


def _parts(text: str) -> list[str] | None:
    """Split at commas, `and` and `or` outside brackets; None if that gives one part. `1,234` is one."""
    text = (
        re.sub(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
        if " " not in text
        else re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])", lambda m: m[0].replace(",", ""), text)
    )
    text = re.sub(r"\s*,?\s+(?:and|or)\s+|\s*[和或]\s*|、|;", ",", text)
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in _OPEN) - (char in _CLOSE)
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    parts.append(current.strip())
    return parts if len(parts) > 1 and all(parts) else None


def structure(text: str) -> tuple[str, list[str]] | None:
    """(`set`, `list`, or the two brackets; parts) of a set, list, tuple or interval; None for others."""
    text = re.sub(r"^[a-zA-Z]\s*(?:∈|\\in)\s*", "", text)
    text = re.sub(r"^⟨(.*)⟩$", r"(\1)", text)
    match = re.fullmatch(r"([(\[⟦{])(.*)([)\]⟧}])", text)
    if match and _closes_at_end(text):
        parts = _parts(match[2]) or ([match[2].strip()] if match[1] in "⟦{" else None)
        if parts:
            return ("set" if match[1] in "⟦{" else match[1] + match[3]), parts
    if text.count("±") == 1:
        return "list", [text.replace("±", "+"), text.replace("±", "-")]
    numbered = re.split(r"\s*[;,]?\s*\(\d\)\s*", text)
    if len(numbered) > 2 and not numbered[0] and text.startswith("(1)") and all(numbered[1:]):
        return "list", [part.strip(" ;,") for part in numbered[1:]]
    parts = _parts(text)
    if parts:
        return "list", [
            re.sub(r"^[a-zA-Z]\s*=\s*", "", part) if _one_variable(parts) else part for part in parts
        ]
    return None


def _one_variable(parts: list[str]) -> bool:
    names = {match[1] for part in parts if (match := re.match(r"([a-zA-Z])\s*=", part))}
    return len(names) == 1


def _closes_at_end(text: str) -> bool:
    depth = 0
    for place, char in enumerate(text):
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth == 0:
            return place == len(text) - 1
    return False
