"""Peers that exchange what the other lacks: messages, sessions, anti-entropy, transports."""

from __future__ import annotations

__all__: list[str] = []
