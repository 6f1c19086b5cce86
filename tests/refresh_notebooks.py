"""`make notebooks`: run the notebooks in order with their own parameters and keep the outputs, which are then
committed.

    make notebooks                     all of them, about 50 minutes
    make notebooks ARGS="07 08 solut"  those whose names begin so
"""

import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"


def last_state(text: str) -> str:
    """What a terminal would show: of a line that a progress bar redraws, the last state."""
    lines = [re.split(r"\r+", line.rstrip("\r"))[-1].rstrip() for line in text.split("\n")]
    return "\n".join(lines)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what differs from run to run and means nothing: times of cells, intermediate progress bars."""
    notebook.metadata = {
        key: notebook.metadata[key] for key in ("kernelspec", "language_info") if key in notebook.metadata
    }
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = last_state(output.text)
        if "outputs" in cell:
            cell.outputs = [
                output for output in cell.outputs if output.output_type != "stream" or output.text.strip()
            ]


def main() -> None:
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    chosen = tuple(sys.argv[1:]) or ("",)
    names = sorted(path.name for path in FOLDER.glob("*.ipynb"))
    if unknown := [start for start in chosen if not any(name.startswith(start) for name in names)]:
        sys.exit(f"no notebook's name begins with {' or '.join(unknown)}")
    for path in (FOLDER / name for name in names if name.startswith(chosen)):
        started = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": FOLDER}},
        ).execute()
        clean(notebook)
        temporary = path.with_suffix(".tmp")
        nbformat.write(notebook, temporary)
        os.replace(temporary, path)
        print(f"{path.name:28} {time.monotonic() - started:4.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
