"""What a model writes around its answer: chat tokens, further turns that it invents, good wishes."""

import re

_TURN = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant|system)\|>")

_END_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<eo[a-z]>|\[/?INST\]|<end_of_turn>|</answer>\s*$")

_FAREWELL = re.compile(
    r"(?:^|(?<=[.!?。！}\s$)]))\s*[*_]*(?:(?:I )?hope (?:this|that|it|my)\b[^.!?\n]{0,120}|(?:Please "
    r"|Just )?(?:let me know|feel free)\b[^.!?\n]{0,120}|"
    r"If you have (?:any|more|other)\b[^\n.!?]{0,120}|Thank you[^.!?\n]{0,60}|Happy to help[^.!?\n]{0,60}|"
    r"希望(?:这|对|能)[^。！\n]{0,60}|如(?:果|有)[^。\n]{0,40}(?:问题|疑问)[^。！\n]{0,40})[.!。！]*[*_]*\s*$",
    re.IGNORECASE,
)


_BLANKS = re.compile(r"\s{9,}")
_SYMBOLS = re.compile(r"([^\w\s\x00-\x7f]{100})[^\w\s\x00-\x7f]+")


def short_runs(text: str) -> str:
    """A text with its long runs of blanks cut to 8 or an empty line, and those of symbols and accents to 100.

    Patterns that allow for blanks, and the sorting of accents, would take minutes on 100,000 of them.
    """
    return _SYMBOLS.sub(r"\1", _BLANKS.sub(lambda run: "\n\n" if "\n" in run[0] else run[0][:8], text))


def without_extras(text: str) -> str:
    """A text without chat tokens, invented further turns, and good wishes at its end."""
    text = re.sub(rf"^\s*(?:{_TURN.pattern})\s*(?:assistant\b)?", "", text)
    turn = _TURN.search(text)
    if turn and text[: turn.start()].strip():
        text = text[: turn.start()]
    text = _END_TOKEN.sub(" ", text).rstrip()
    for _ in range(5):
        tail = text[-600:]
        shorter = (
            text[:-600] + _FAREWELL.sub("", tail).rstrip()
            if len(text) > 600
            else _FAREWELL.sub("", tail).rstrip()
        )
        if shorter == text or not shorter.strip():
            break
        text = shorter
    return text
