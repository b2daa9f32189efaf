"""The store of settings and finished jobs, in SQLite, which a restart keeps."""

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tops_engine.text import valid_text

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, number REAL NOT NULL, status TEXT NOT NULL, create_time REAL NOT NULL, job TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (create_time);
"""

#: Older jobs are deleted; their pictures stay in the output folder.
MAX_JOBS = 10_000


class Store:
    """A database file; safe to use from several threads.

    Args:
        path: The file; it is created with its folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.executescript("PRAGMA journal_mode=WAL;" + SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def settings(self) -> dict[str, Any]:
        """Return all settings of the frontend."""
        rows = self._read("SELECT name, value FROM settings")
        return {name: json.loads(value) for name, value in rows}

    def set_settings(self, values: dict[str, Any]) -> None:
        """Store settings; the others are not changed. A lone surrogate in a name is replaced."""
        rows = [(valid_text(name), json.dumps(value)) for name, value in values.items()]
        self._write("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def save_job(self, job: dict[str, Any]) -> None:
        """Store a finished job; ``job`` has id, number, status, create_time and any other fields."""
        row = (job["id"], job["number"], job["status"], job["create_time"], json.dumps(job, default=str))
        self._write("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?)", [row])
        oldest = "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs ORDER BY create_time DESC LIMIT -1 OFFSET ?)"
        self._write(oldest, [(MAX_JOBS,)])

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a finished job."""
        rows = self._read("SELECT job FROM jobs WHERE id = ?", (job_id,))
        return json.loads(rows[0][0]) if rows else None

    def jobs(self, statuses: Sequence[str], limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        """Return finished jobs, the newest first, and their total number."""
        marks = ",".join("?" * len(statuses))
        where = f"FROM jobs WHERE status IN ({marks})"
        rows = self._read(f"SELECT job {where} ORDER BY create_time DESC LIMIT ? OFFSET ?", (*statuses, limit, offset))
        (total,) = self._read(f"SELECT COUNT(*) {where}", statuses)[0]
        return [json.loads(row[0]) for row in rows], int(total)

    def delete_jobs(self, job_ids: Sequence[str] | None) -> None:
        """Delete jobs; None deletes all."""
        if job_ids is None:
            self._write("DELETE FROM jobs", [()])
        else:
            self._write("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in job_ids])

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()

    def _write(self, query: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._lock, self._connection:
            self._connection.executemany(query, rows)
