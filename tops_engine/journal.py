"""Results that survive being stopped: a JSONL file that grows line by line and is continued."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tops_engine.errors import InvalidInput, listed, shorten

BLOCK = 2**16


class Journal:
    """A JSONL file: a header that says which run it belongs to, then one record a line.

    A last line that was half written when the run was killed is cut off. Nothing of the file is kept in memory.

    Parameters
    ----------
    path : the file, made if there is none; None writes nothing.
    header : what has to be the same for a run to continue the file.

    Raises
    ------
    InvalidInput
        If the file belongs to another run, is not such a file, or cannot be read or written.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self._path = path
        if path is None:
            return
        first = _line(header)
        try:
            with path.open("r+b" if path.exists() else "x+b") as file:
                line = file.readline()
                if not first.startswith(line):
                    self._check_header(line, header)
                if line.endswith(b"\n"):
                    end = _end_of_last_line(file)
                    if end < file.seek(0, os.SEEK_END):
                        file.truncate(end)
                else:
                    file.truncate(0)
                    file.seek(0)
                    file.write(first)
        except OSError as error:
            raise InvalidInput(f"The results file {shorten(path)} cannot be used: {error.strerror}.") from error

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of the file, read line by line.

        Raises
        ------
        InvalidInput
            If a line is no record.
        """
        for _, record in self._places():
            yield record

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
                raise InvalidInput(
                    f"The results file {shorten(self._path)} cannot be written: {error.strerror}."
                ) from error

    def sort(self, key: Callable[[dict[str, Any]], Any]) -> None:
        """Put the records in order; of several with one key the last stays. Whenever it is killed, the file is whole.

        Raises
        ------
        InvalidInput
            As :meth:`records`, or if there is no room for the sorted file beside the other.
        """
        if self._path is None:
            return
        found = [(key(record), place) for place, record in self._places()]
        latest = sorted(dict(found).items())
        if latest == found:
            return
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            with self._path.open("rb") as file, part.open("wb") as ordered:
                ordered.write(file.readline())
                for _, place in latest:
                    file.seek(place)
                    ordered.write(file.readline())
            part.replace(self._path)
        except OSError as error:
            raise InvalidInput(f"The results file {shorten(self._path)} cannot be sorted: {error.strerror}.") from error
        finally:
            part.unlink(missing_ok=True)

    def _places(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each record and the byte where it begins."""
        if self._path is None:
            return
        with self._path.open("rb") as file:
            place = len(file.readline())
            for number, line in enumerate(file, start=2):
                yield place, self._parse(line, number)
                place += len(line)

    def _check_header(self, line: bytes, header: dict[str, Any]) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != header["format"]:
            raise InvalidInput(f"{shorten(self._path)} is not a results file of this command; name another file.")
        differing = [name for name in header if found.get(name) != header[name]]
        if differing:
            raise InvalidInput(
                f"{shorten(self._path)} holds the results of another run (different: {listed(differing)}); "
                "name another file, or delete it."
            )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InvalidInput(
                f"Line {number} of {shorten(self._path)} is damaged; delete the line, or name another file."
            )
        return record


def _line(record: dict[str, Any]) -> bytes:
    # Half a surrogate pair, as in the names of files that are not UTF-8, becomes the JSON escape it is read back from.
    return json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _end_of_last_line(file: BinaryIO) -> int:
    """Return the position after the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
