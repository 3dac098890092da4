"""Options that several verbs take, and the values they turn into. What is wrong is refused before anything opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import reduce
from math import isnan
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from deltalog.app.opening import DataOptions
from deltalog.app.process import DEBUG_VARIABLE
from deltalog.clock import from_iso
from deltalog.delta import SEQ_MAX, TIMESTAMP_MAX, Limits, check_source
from deltalog.errors import UsageError

_DIGITS: Final = len(str(TIMESTAMP_MAX))
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


class TimeType(click.ParamType[int]):
    """ISO 8601 with an offset, or a timestamp's number, as a timestamp."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the timestamp."""
        if isinstance(value, int):
            return value
        try:
            if value.isascii() and value.isdigit() and len(value) <= _DIGITS and int(value) <= TIMESTAMP_MAX:
                return int(value)
            return from_iso(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SourceType(click.ParamType[str]):
    """The name of a source."""

    name = "SOURCE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, which may be one."""
        try:
            check_source(value, Limits())
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class SourceSeqType(click.ParamType[tuple[str, int]]):
    """`SOURCE=SEQ`."""

    name = "SOURCE=SEQ"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return (source, seq)."""
        if isinstance(value, tuple):
            return value
        source, equals, seq = value.rpartition("=")
        if not equals:
            self.fail(f"{value!r} is not SOURCE=SEQ", param, ctx)
        return SOURCE.convert(source, param, ctx), SEQ.convert(seq, param, ctx)


class DirectoryType(click.ParamType[Path]):
    """A path that may be a directory."""

    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        text = os.fspath(value)
        if not text or "\0" in text:
            self.fail("it must name a directory", param, ctx)
        return Path(text)


class SeqType(click.ParamType[int]):
    """A seq: from 0, which stands before the first."""

    name = "SEQ"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(SEQ_MAX)) and int(text) <= SEQ_MAX):
            self.fail(f"a seq is an integer from 0 to {SEQ_MAX}, not {text!r}"[:120], param, ctx)
        return int(text)


class NumberRange(click.FloatRange):
    """A range of numbers, "nan" not among them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value!r} is not a valid {self.name}", param, ctx)
        return number


TIME: Final = TimeType()
SOURCE: Final = SourceType()
SEQ: Final = SeqType()
SOURCE_SEQ: Final = SourceSeqType()
DIRECTORY: Final = DirectoryType()


def _options(*options: Callable[[_Verb], _Verb]) -> Callable[[_Verb], _Verb]:
    """Several decorators as one; help lists them in this order."""
    return lambda verb: reduce(lambda done, option: option(done), reversed(options), verb)


def _set_debug(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG_VARIABLE] = "1"


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, and no progress.")
source_filter: Final = click.option(
    "--source", "sources", type=SOURCE, multiple=True, help="Only deltas of this source; may be given several times."
)
own_source: Final = click.option(
    "--source", type=SOURCE, help="Who appends here; fixed when the directory is made [default: a random name]."
)
debug_option: Final = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors."
)
data_only: Final = _options(
    click.option(
        "--data", type=DIRECTORY, required=True, envvar="DELTALOG_DATA", show_envvar=True, help="The data directory."
    ),
    debug_option,
)
data_options: Final = _options(
    data_only,
    click.option(
        "--accept-loss", is_flag=True, help="Go on with what is left when fsynced data is gone, under a new source."
    ),
    click.option("--adopt", is_flag=True, help="Go on from a copied or restored directory, under a new source."),
)
time_range: Final = _options(
    click.option(
        "--after", type=TIME, help="Only deltas after this time: ISO 8601 with an offset, or a timestamp's number."
    ),
    click.option("--until", type=TIME, help="Only deltas up to this time."),
)


def data_of(path: Path, accept_loss: bool, adopt: bool, silent: bool = False) -> DataOptions:
    """What the options of `data_options` say."""
    return DataOptions(path, accept_loss, adopt, silent)


def refuse_unknown(sources: Mapping[str, object], wanted: Any) -> None:
    """Raise `UsageError` for a source that the log knows nothing of."""
    for source in wanted:
        if source not in sources:
            names = ", ".join(map(repr, sorted(sources)[:5])) or "none"
            more = f" and {len(sources) - 5:,} more" if len(sources) > 5 else ""
            raise UsageError(f"there is no source {source!r} here; there are: {names}{more}")
