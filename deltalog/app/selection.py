"""Which deltas a reading verb asks for, and the stream of pages that answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import attrs
import click

from deltalog.app.options import refuse_unknown
from deltalog.delta import TIMESTAMP_MAX, Delta
from deltalog.log import DeltaLog
from deltalog.reader import Stream


@attrs.frozen(kw_only=True)
class Selection:
    """What to read; None sets no bound. `after` is exclusive, `until` inclusive."""

    sources: Sequence[str] = ()
    """Only these; none: all."""
    after: int | None = None
    until: int | None = None
    """Timestamps."""
    after_seq: int | None = None
    until_seq: int | None = None
    """Of the one source."""
    reverse: bool = False
    limit: int | None = None

    def __attrs_post_init__(self) -> None:
        """Raise `click.UsageError` for what does not go together."""
        for option, given in (
            ("--after-seq", self.after_seq is not None),
            ("--until-seq", self.until_seq is not None),
            ("--reverse", self.reverse),
        ):
            if given and len(self.sources) != 1:
                raise click.UsageError(f"{option} needs exactly one --source")
        for low, high, name in ((self.after, self.until, ""), (self.after_seq, self.until_seq, "-seq")):
            if low is not None and high is not None and low > high:
                raise click.UsageError(f"--after{name} comes after --until{name}")

    async def pages(self, log: DeltaLog) -> AsyncIterator[Sequence[Delta]]:
        """Deltas, many at a time; never an empty page. Raises `UsageError` for a source that is not here."""
        refuse_unknown(log.heads, self.sources)
        stream, left = self._stream(log), self.limit
        while left != 0 and (page := await stream.page()):
            found = [delta for delta in page if self.wants(delta)][:left]
            if left is not None:
                left -= len(found)
            if found:
                yield found

    async def newest(self, log: DeltaLog, count: int) -> Sequence[Delta]:
        """The newest deltas by timestamp, `count` of them, oldest first; only the sources count of the selection.

        Cost: at most `count` deltas of each source. Raises `UsageError` for a source that is not here.
        """
        refuse_unknown(log.heads, self.sources)
        found: list[Delta] = []
        for source in self.sources or log.heads:
            stream, left = log.by_source(source, reverse=True), count
            while left > 0 and (page := await stream.page(left)):
                found.extend(page[:left])
                left -= len(page)
            found = sorted(found, key=lambda delta: (delta.timestamp, delta.source))[-count:]
        return found

    def _stream(self, log: DeltaLog) -> Stream:
        if len(self.sources) == 1:
            return log.by_source(self.sources[0], after=self.after_seq, until=self.until_seq, reverse=self.reverse)
        if self.after is None and self.until is None:
            return log.replay()
        return log.between(*self._interval)

    def wants(self, delta: Delta) -> bool:
        """Whether a delta is of the sources and within the times."""
        after, until = self._interval
        return after < delta.timestamp <= until and (not self.sources or delta.source in self.sources)

    @property
    def _interval(self) -> tuple[int, int]:
        return -1 if self.after is None else self.after, TIMESTAMP_MAX if self.until is None else self.until
