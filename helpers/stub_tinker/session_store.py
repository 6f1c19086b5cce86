"""What is kept of sessions on disk.

STATE/sessions/SESSION.json   who, when, and how it ended; kept for good
STATE/samplers/SESSION/…      weights of samplers that are not in memory now; they end with their session
"""

import json
import shutil
import uuid
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError

from helpers.stub_tinker import disk
from helpers.stub_tinker.budgets import DiskUse
from helpers.stub_tinker.disk import NAME, check_name, writing
from helpers.stub_tinker.errors import StoreError

SESSION_FIELDS = {"owner": str, "created": str}


class SessionStore:
    """The sessions under one state folder. Sampler weights that an earlier server left are deleted.

    Args:
        use: of the disk; without limits if None.
    """

    def __init__(self, folder: Path, records: disk.Records | None = None, use: DiskUse | None = None):
        self.sessions, self.samplers = folder / "sessions", folder / "samplers"
        self._records = records or disk.Records()
        self._use = use or DiskUse()
        self._use.counts.append(self._bytes_by_owner)
        self.sessions.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.samplers, ignore_errors=True)
        for left in self.sessions.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def _bytes_by_owner(self) -> Counter[str]:
        used: Counter[str] = Counter()
        for path in self.sessions.glob("[!.]*.json"):
            if record := self._records.read(path, SESSION_FIELDS):
                used[record["owner"]] += disk.BLOCK + path.stat().st_size
                aside = (self.samplers / path.stem).glob("*.safetensors")
                used[record["owner"]] += sum(file.stat().st_size for file in aside)
        return used

    def save(self, session: str, record: dict) -> None:
        path = self.sessions / f"{check_name(session, 'session')}.json"
        if not path.exists():  # a session can end on a full disk
            self._use.take(record["owner"], disk.BLOCK + len(json.dumps(record)))
        with writing(f"session {session}"):
            disk.write_json(path, record)

    def read(self, session: str, owner: str) -> dict:
        """What is known of a session, ended ones too.

        Raises:
            StoreError: there is none of that id for this owner.
        """
        path = self.sessions / f"{session}.json"
        record = self._records.read(path, SESSION_FIELDS) if NAME.fullmatch(session) else None
        if record is None or record["owner"] != owner:
            raise StoreError(f"there is no session {session!r}", 404)
        return record

    def all_of(self, owner: str) -> list[tuple[str, dict]]:
        """This owner's sessions by id, newest first."""
        paths = self.sessions.glob("[!.]*.json")
        records = [(path.stem, self._records.read(path, SESSION_FIELDS)) for path in paths]
        own = [(key, record) for key, record in records if record and record["owner"] == owner]
        return sorted(own, key=lambda row: (row[1]["created"], row[0]), reverse=True)

    def set_aside(self, session: str, owner: str, flat: torch.Tensor) -> Path:
        """Write the weights of a sampler. Returns where they are.

        Raises:
            WriteError: the disk refused.
            BadRequest: the owner has too much on it.
        """
        self._use.take(owner, flat.nbytes)
        path = self.samplers / check_name(session, "session") / f"{uuid.uuid4().hex}.safetensors"
        with writing("weights of a sampler"):
            disk.write_tensors(path, {"flat": flat})
        return path

    def read_back(self, path: Path) -> torch.Tensor:
        try:
            return disk.read_tensors(path)["flat"]
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"the weights of this sampler are gone: {disk.reason(error)}. Make a new sampling client"
            ) from error

    def forget_samplers(self, session: str) -> None:
        shutil.rmtree(self.samplers / session, ignore_errors=True)
        self._use.removed()
