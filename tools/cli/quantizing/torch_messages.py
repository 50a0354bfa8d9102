"""What torch logs and prints while it works, kept from the terminal until it is known what it is worth."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Generator
from typing import Final

__all__ = ["Kept", "torch_kept_quiet"]

_LOGGERS: Final = ("torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")


class Kept(logging.Handler):
    """What was logged and printed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.printed = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, and its text among what was printed."""
        self.records.append(record)
        self.printed.write(f"{record.getMessage()}\n")

    @property
    def text(self) -> str:
        """All of it."""
        return self.printed.getvalue().strip()

    def tell(self) -> None:
        """Put it on stderr after all."""
        if self.text:
            sys.stderr.write(f"{self.text}\n")


@contextlib.contextmanager
def torch_kept_quiet() -> Generator[Kept]:
    """Keep what torch logs about programs, and all that is printed to stderr, off the terminal."""
    kept = Kept()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    # torch gives its loggers handlers of their own.
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [kept], False
    try:
        with contextlib.redirect_stderr(kept.printed):
            yield kept
    finally:
        for logger, handlers, propagates in before:
            logger.handlers, logger.propagate = handlers, propagates
