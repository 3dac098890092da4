"""Loggers of libraries that set themselves up when they are imported. Does not know: any of these libraries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_left_alone(*names: str) -> Iterator[None]:
    """Take back what an import does to these loggers: levels, handlers, propagation are for the embedder to decide.

    A handler that says nothing may stay: it only keeps a library's warnings off the standard error of a program that
    does no logging.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        silent = [h for h in logger.handlers if isinstance(h, logging.NullHandler) and h not in handlers]
        logger.handlers[:] = [*handlers, *silent]
        logger.propagate = propagate
