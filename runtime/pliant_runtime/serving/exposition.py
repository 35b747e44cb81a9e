"""The shared counters as prometheus_client's metric families, in a registry of their own.

prometheus_client's way for several processes keeps a file per process, and gauges of killed ones stay in it; here every
process adds up the rows of `Metrics` instead, whichever of them is asked.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pliant_runtime.serving.metrics import CODES, COUNTERS, GAUGES, Metrics


class Exposition(Collector):
    """Text for Prometheus.

    Args:
        metrics: the counters.
        subnets: how many sub-networks there are at the moment.
    """

    def __init__(self, metrics: Metrics, subnets: Callable[[], int]) -> None:
        self._metrics, self._subnets = metrics, subnets
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and text, in the format that the scraper accepts."""
        encode, kind = choose_encoder(accept)
        return kind, encode(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing; the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        metrics, subnets = self._metrics, range(self._subnets())
        answers = CounterMetricFamily("pliant_requests", "Answers by status.", labels=["code"])
        for code in CODES:
            answers.add_metric([str(code)], metrics.total("code", code))
        yield answers
        yield self._latency()
        for kind in ("rows", "batches"):
            told = f"{kind.capitalize()} answered by each sub-network."
            family = CounterMetricFamily(f"pliant_{kind}", told, labels=["subnet"])
            for number in subnets:
                family.add_metric([str(number)], metrics.total(kind, number))
            yield family
        for name, told in COUNTERS.items():
            yield CounterMetricFamily(f"pliant_{name}", told, value=metrics.total(name))
        for name, told in GAUGES.items():
            gauge = GaugeMetricFamily(f"pliant_{name}", told, labels=["worker"])
            for worker, value in enumerate(metrics.gauge(name)):
                gauge.add_metric([str(worker)], value)
            yield gauge
        yield GaugeMetricFamily("pliant_slo_seconds", "The promise.", value=metrics.slo_s)

    def _latency(self) -> HistogramMetricFamily:
        within, buckets = 0.0, []
        for edge in (*self._metrics.edges, float("inf")):
            within += self._metrics.total("bucket", edge)
            buckets.append(("+Inf" if edge == float("inf") else f"{edge:.6g}", within))
        told = "Seconds from request to answer of inferences."
        return HistogramMetricFamily(
            "pliant_latency_seconds", told, buckets=buckets, sum_value=self._metrics.total("latency_sum")
        )
