"""What the gateway counts, for Prometheus. Needs ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,  # no old name of ours
    Histogram,
    Metric,
    generate_latest,
)

from ..recipe.gateway import GatewayModel
from ..switching.spending import Amount, Usage, cost, dollars

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one gateway since it began; what was spent before stands in its store."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"atlas_gateway_{name}", text, labels, registry=self._all)

        self.requests = counter("requests", "Requests for a completion by the status of their answer", "status")
        self.steps = counter("steps", "Steps by the model that was to take them", "model")
        self.failures = counter("upstream_failures", "Attempts that gave no answer", "model")
        self.repeated = counter("repeated", "Requests answered with the answer to the same one before")
        self.tokens = counter("tokens", "Tokens by model and kind, as upstreams counted them", "model", "kind")
        self.usd = counter("usd", "Money by model: what upstreams counted, else what was reserved", "model")
        self.uncounted = counter("uncounted", "Answers without usage, whose reservation was kept", "model")
        self.over = counter("over_reserved", "Answers that took more than their worst case", "model")
        self.shadows = counter("shadows", "Answers of the first model in the shadow of a step, by what they do", "does")
        self.seconds = Histogram(
            "atlas_gateway_step_seconds", "Until a step was answered", ("model",), buckets=_SECONDS, registry=self._all
        )
        self.open = Gauge(  # no old name of ours
            "atlas_gateway_open_requests", "Requests that are being answered", registry=self._all
        )

    def answered(self, name: str, model: GatewayModel, usage: Usage | None, reserved: Amount, seconds: float) -> None:
        """Count a step that was answered."""
        self.seconds.labels(name).observe(seconds)
        self.spent(name, model, usage, reserved)

    def spent(self, name: str, model: GatewayModel, usage: Usage | None, reserved: Amount) -> None:
        """Count what an answer took."""
        used = reserved if usage is None else cost(model, usage, bool(reserved.calls))
        self.usd.labels(name).inc(float(dollars(used.usd)))
        if usage is None:
            self.uncounted.labels(name).inc()
            return
        self.tokens.labels(name, "prompt").inc(usage.prompt)
        self.tokens.labels(name, "completion").inc(usage.completion)
        if any(u > r for u, r in zip(used, reserved, strict=True)):
            self.over.labels(name).inc()

    def families(self) -> list[Metric]:
        """All of them, to be merged with those of other replicas."""
        return list(self._all.collect())

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._all)


def merged(replicas: Iterable[tuple[str, list[Metric]]]) -> bytes:
    """The numbers of several gateways in Prometheus' text format, each with the name of its replica.

    Args:
        replicas: their names and :meth:`Metrics.families`.
    """
    found: dict[str, Metric] = {}
    for name, families in replicas:
        for family in families:
            into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [s._replace(labels={**s.labels, "replica": name}) for s in family.samples]
    return generate_latest(_Merged(list(found.values())))


class _Merged(CollectorRegistry):
    """Numbers that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
