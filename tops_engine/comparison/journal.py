"""Results that survive being stopped: a JSONL file that grows line by line and is continued."""

import json
from pathlib import Path
from typing import Any

from tops_engine.errors import InvalidInput


class Journal:
    """A JSONL file: a header that says which run it belongs to, then one record a line.

    A last line that was half written when the run was killed is cut off.

    Parameters
    ----------
    path : the file, made if there is none; None keeps the records in memory only.
    header : what has to be the same for a run to continue the file.

    Raises
    ------
    InvalidInput
        If the file belongs to another run, is not such a file, or cannot be read or written.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self._path = path
        self.records: list[dict[str, Any]] = []
        if path is None:
            return
        try:
            content = path.read_bytes() if path.exists() else b""
            first = _line(header)
            if not content or (b"\n" not in content and first.startswith(content)):
                path.write_bytes(first)
                return
            *lines, rest = content.split(b"\n")
            self._check_header(lines[0] if lines else rest, header)
            self.records = [self._parse(line, number) for number, line in enumerate(lines[1:], start=2)]
            if rest:
                with path.open("r+b") as file:
                    file.truncate(len(content) - len(rest))
        except OSError as error:
            raise InvalidInput(f"The results file {path} cannot be used: {error.strerror}.") from error

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write records at once, so that a kill leaves all of them or a damaged end that is cut off.

        Raises
        ------
        InvalidInput
            If the file cannot be written, such as on a full disk.
        """
        if self._path is not None:
            try:
                with self._path.open("ab") as file:
                    file.write(b"".join(_line(record) for record in records))
            except OSError as error:
                raise InvalidInput(f"The results file {self._path} cannot be written: {error.strerror}.") from error
        self.records += records

    def _check_header(self, line: bytes, header: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != header["format"]:
            raise InvalidInput(f"{self._path} is not a results file of this command; name another file.")
        differing = [name for name in header if found.get(name) != header[name]]
        if differing:
            raise InvalidInput(
                f"{self._path} holds the results of another run (different: {', '.join(differing)}); "
                "name another file, or delete it."
            )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InvalidInput(f"Line {number} of {self._path} is damaged; delete the line, or name another file.")
        return record


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
