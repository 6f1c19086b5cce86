"""Data files as bytes: packed ones are unpacked, within limits, since a file from elsewhere may be a bomb.

plain_suffix(Path("own.CSV.gz"))      # ".csv"
text = data_text(Path("own.csv.gz"))
"""

from pathlib import Path

from helpers.errors import DataError
from helpers.files import read_bytes, text_of_bytes
from helpers.text import size_text

PACKED = {".gz": "gzip", ".zst": "zstd"}
MIB = 1 << 20
MOST_RATIO, ALWAYS = 200, 64 * MIB  # text packs 3 to 30 to 1


def plain_suffix(path: Path) -> str:
    """What a file's name ends in, in lower case, without what it is packed by."""
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()


def most_bytes(packed: int) -> int:
    """To how many bytes a file of that many may unpack."""
    return ALWAYS + MOST_RATIO * packed


def data_bytes(path: Path, missing: str) -> bytes:
    """What a data file holds, unpacked if its name ends in .gz or .zst.

    Raises:
        DataError: it can't be read, is not packed as its name says, is cut off, or unpacks to more than
            MOST_RATIO times its size: nothing beyond that is read.
    """
    raw = read_bytes(path, missing)
    kind = PACKED.get(path.suffix.lower())
    if kind is None:
        return raw
    import pyarrow

    pieces, left = [], most_bytes(len(raw))
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), kind) as stream:
            while left >= 0 and (piece := stream.read(MIB)):
                left -= len(piece)
                pieces.append(piece)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise DataError(
            f"{path} can't be unpacked: it is cut off, or no {kind} file ({error})",
            f"get it again, or take {path.suffix} off its name if it isn't packed",
        ) from error
    if left < 0:
        raise DataError(
            f"{path} unpacks to over {size_text(most_bytes(len(raw)))}, too much for {size_text(len(raw))}: "
            "it may be a decompression bomb",
            "if you trust it, unpack it and name the unpacked file",
        )
    return b"".join(pieces)


def data_text(path: Path, missing: str = "check the path") -> str:
    """The text of a data file, packed or not; raises DataError as `data_bytes` and `read_text` do."""
    return text_of_bytes(path, data_bytes(path, missing))
