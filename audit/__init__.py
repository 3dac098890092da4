"""Locks with fencing tokens and the audit trail of what happened to them: events, buffered store, queries, HTTP API."""

from __future__ import annotations

__all__: list[str] = []
