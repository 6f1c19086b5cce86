"""Reads a page that the course wrote, as a browser would, and refuses what must not be in it."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "br", "hr", "img", "link"}
LOADS_OR_RUNS = {"script", "iframe", "object", "embed", "link", "img", "form", "base"}
REFERENCES = {"href", "src", "data", "action"}


class Page(HTMLParser):
    """A page, checked at once: tags match, ids are there once, nothing loads or runs, figures have names.

    Attributes:
        source: the file.
        tags: (name, attributes) of each.
        text: what a reader sees.
        rows: the cells of each row of each table.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.check_ids_and_references()
        self.check_nothing_loads_or_runs()
        self.check_structure()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def check_ids_and_references(self) -> None:
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [attributes[name] for _, attributes in self.tags for name in REFERENCES & attributes.keys()]
        assert links and all(link.startswith("#") and link[1:] in ids for link in links)
        used = re.findall(r"url\((.*?)\)", self.source)
        assert all(reference.strip("'\"")[1:] in ids for reference in used), used

    def check_nothing_loads_or_runs(self) -> None:
        assert not LOADS_OR_RUNS & {tag for tag, _ in self.tags}
        assert not [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
        assert "http" not in self.source.replace("http-equiv", "")
        [policy] = [
            attributes["content"]
            for _, attributes in self.tags
            if attributes.get("http-equiv") == "Content-Security-Policy"
        ]
        assert "default-src 'none'" in policy and "script-src" not in policy

    def check_structure(self) -> None:
        names = [tag for tag, _ in self.tags]
        levels = [int(name[1]) for name in names if re.fullmatch(r"h[1-6]", name)]
        assert levels.count(1) == 1 == levels[0]
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert names.count("table") == names.count("caption")
        assert all("scope" in attributes for tag, attributes in self.tags if tag == "th")
        figures = [attributes for tag, attributes in self.tags if tag == "svg"]
        assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)

    @property
    def figures(self) -> int:
        return sum(tag == "svg" for tag, _ in self.tags)
