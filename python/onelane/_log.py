"""Log records of an isolated worker on their way to its parent, among the lines that it writes.

A record is one line on the child's stderr that begins with a mark; all other lines are what the
child's code has written. What is too long for one write is cut.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading

_MARK = "\x1e"
# A pipe takes so much at once, whoever else writes to it.
_LONGEST = 4000
_TEXT = 1000


class Sender(logging.Handler):
    """In the child: sends each record to the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, as one line."""
        try:
            raised = None
            if record.exc_info and record.exc_info[0] is not None:
                raised = logging.Formatter().formatException(record.exc_info)[-_TEXT:]
            fields = (
                record.levelno,
                record.name,
                record.getMessage()[: 2 * _TEXT],
                record.created,
                record.threadName,
                record.pathname[-200:],
                record.lineno,
                record.funcName,
                raised or record.exc_text,
            )
            line = _MARK + json.dumps(fields)
            if len(line) > _LONGEST:
                short = (*fields[:2], record.getMessage()[:_TEXT] + " [cut]", *fields[3:8], None)
                line = _MARK + json.dumps(short)
            os.write(2, f"{line}\n".encode())
        except Exception:
            self.handleError(record)


def levels() -> dict[str, int]:
    """Return the levels that are set in this process, by the names of the loggers."""
    found = {"": logging.getLogger().level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            found[name] = logger.level
    return found


def receive(line: str) -> None:
    """In the parent: hand a line of a child's on, to `logging` or to stderr."""
    before, mark, rest = line.partition(_MARK)
    record = _record(rest) if mark else None
    if record is None:
        _write(line)
        return
    if before:
        _write(before)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _record(text: str) -> logging.LogRecord | None:
    try:
        level, name, message, created, thread, path, line, function, raised = json.loads(text)
        record = logging.LogRecord(name, level, path, line, message, None, None, function)
    except (ValueError, TypeError):
        return None
    record.created, record.threadName, record.exc_text = created, thread, raised
    record.msecs = (created % 1) * 1000
    record.processName = "onelane worker"
    return record


_writing = threading.Lock()


def _write(line: str) -> None:
    stream = sys.stderr
    if stream is None:
        return
    with _writing:
        stream.write(f"{line}\n")
        stream.flush()


def readable(text: str) -> str:
    """Return what a child has written, with its log records as one reads them."""
    if _MARK not in text:
        return text
    lines = []
    for line in text.split("\n"):
        before, mark, rest = line.partition(_MARK)
        record = _record(rest) if mark else None
        if record is None:
            lines.append(line)
        else:
            lines.append(f"{before}{record.levelname} {record.name}: {record.getMessage()}")
    return "\n".join(lines)


__all__ = ["Sender", "levels", "readable", "receive"]
