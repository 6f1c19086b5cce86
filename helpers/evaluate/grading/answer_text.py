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
