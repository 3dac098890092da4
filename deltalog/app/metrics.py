"""Metrics of a node for Prometheus, in a registry of their own: an application's metrics are not touched.

Lives here: names of metrics, and where each figure comes from; all are read when somebody asks. Does not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deltalog.app.node import Node
from sync import PeerStatus

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_1_0_0

_COUNTERS: Final[dict[str, tuple[str, Callable[[Node], float]]]] = {
    "deltalog_audit_events_submitted": (
        "Audit events submitted: recorded, dropped or pending",
        lambda node: node.trail.recorder.statistics().submitted,
    ),
    "deltalog_audit_events_recorded": (
        "Audit events in the trail since it was opened",
        lambda node: node.trail.recorder.statistics().recorded,
    ),
    "deltalog_audit_batches": ("Batches written to the trail", lambda node: node.trail.recorder.statistics().batches),
    "deltalog_audit_fsyncs": ("Fsyncs of the trail", lambda node: node.trail.recorder.statistics().fsyncs),
}
_GAUGES: Final[dict[str, tuple[str, Callable[[Node], float]]]] = {
    "deltalog_healthy": ("1 if nothing needs attention", lambda node: not node.problems()),
    "deltalog_audit_events_pending": (
        "Audit events that are not written yet",
        lambda node: node.trail.recorder.statistics().pending,
    ),
    "deltalog_audit_head": ("Number of the trail's last event", lambda node: node.trail.store.head.number),
    "deltalog_audit_floor": (
        "Number up to which retention removed events",
        lambda node: node.trail.store.head.floor,
    ),
    "deltalog_locks_held": ("Leases in force", lambda node: node.locks.statistics().held),
    "deltalog_locks_waiting": ("Requests in the queue", lambda node: node.locks.statistics().waiting),
    "deltalog_tokens_left": (
        "Fencing tokens that are reserved and not given out",
        lambda node: node.locks.statistics().tokens_left,
    ),
    "deltalog_log_sources": ("Sources in the log", lambda node: len(node.log.heads)),
    "deltalog_log_deltas": ("Sum of the heads of all sources", lambda node: sum(node.log.heads.values())),
    "deltalog_log_synced": ("Sum of what is fsynced of all sources", lambda node: sum(node.log.synced.values())),
}

_PEER_COUNTERS: Final[dict[str, tuple[str, Callable[[PeerStatus], float]]]] = {
    "deltalog_sync_deltas_in": ("Deltas that came from the peer", lambda peer: peer.traffic.deltas_in),
    "deltalog_sync_deltas_known": (
        "Deltas that came from the peer and were held already",
        lambda peer: peer.traffic.deltas_known,
    ),
    "deltalog_sync_deltas_out": ("Deltas sent to the peer", lambda peer: peer.traffic.deltas_out),
    "deltalog_sync_bytes_in": ("Bytes that came from the peer", lambda peer: peer.traffic.bytes_in),
    "deltalog_sync_bytes_out": ("Bytes sent to the peer", lambda peer: peer.traffic.bytes_out),
}
_PEER_GAUGES: Final[dict[str, tuple[str, Callable[[PeerStatus], float]]]] = {
    "deltalog_sync_lag": ("Deltas synced here that the peer has not acknowledged", lambda peer: peer.lag),
    "deltalog_sync_behind": ("Deltas that the peer has and this node lacks", lambda peer: peer.behind),
    "deltalog_sync_equal": ("1 if the peer's last heartbeat showed the same digest", lambda peer: peer.equal),
}
STATES: Final = ("connected", "catching up", "live", "offline")


class Metrics:
    """All metrics of one node."""

    def __init__(self, node: Node, tails: Callable[[], float]) -> None:
        """`tails`: how many live tails run."""
        self._registry = CollectorRegistry()
        self._registry.register(_NodeCollector(node))
        Gauge("deltalog_http_tails", "Live tails", registry=self._registry).set_function(tails)
        self._requests = Counter(
            "deltalog_http_requests",
            "Requests answered, by route and status; status 0: the client left first",
            ("route", "status"),
            registry=self._registry,
        )

    def count_request(self, route: str, status: int) -> None:
        """One request was answered; `route` is the path as the API declares it, "" for none of its paths."""
        self._requests.labels(route or "none", str(status)).inc()

    def exposition(self) -> bytes:
        """Everything, in the text format of Prometheus."""
        return generate_latest(self._registry)


class _NodeCollector(Collector):
    """Figures that the node keeps anyway."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        for name, (text, figure) in _COUNTERS.items():
            yield CounterMetricFamily(name, text, value=figure(self._node))
        for name, (text, figure) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(figure(self._node)))
        dropped = CounterMetricFamily(
            "deltalog_audit_events_dropped", "Audit events dropped, by action", labels=("action",)
        )
        for action, count in self._node.trail.recorder.statistics().dropped.items():
            dropped.add_metric((str(action),), count)
        yield dropped
        if self._node.mesh is not None:
            yield from _of_peers(self._node.mesh.statuses())


def _of_peers(peers: Sequence[PeerStatus]) -> Iterator[Metric]:
    families: list[tuple[type[CounterMetricFamily | GaugeMetricFamily], Mapping[str, Any]]] = [
        (CounterMetricFamily, _PEER_COUNTERS),
        (GaugeMetricFamily, _PEER_GAUGES),
    ]
    for kind, table in families:
        for name, (text, figure) in table.items():
            family = kind(name, text, labels=("peer",))
            for peer in peers:
                family.add_metric((peer.name,), float(figure(peer)))
            yield family
    states = GaugeMetricFamily("deltalog_sync_state", "1 for the state that the peer is in", labels=("peer", "state"))
    for peer in peers:
        for state in STATES:
            states.add_metric((peer.name, state), float(peer.state == state))
    yield states
