"""The gateway's Prometheus series.

Room: gateway. Touches nothing but its own registry. Names and labels that others query are in ratchet_api.metrics.

Looking up a labelled child costs more than counting, so the children of an arm are kept in an `ArmMetrics`.
"""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from ratchet_api import metrics as names

_CODES = (200, 400, 429, 499, 500, 502, 503, 504)
_REASONS = ("stop", "length", "tool_calls", "content_filter", "cancelled", "error")
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_LABELS = list(names.LABELS)
_CYCLE_LABELS = ["cycle_namespace", "cycle"]


def _stem(name: str) -> str:
    return name.removesuffix("_total")


@dataclass(slots=True)
class ArmMetrics:
    """The series of one version, ready to be counted in. All of them exist from the start, with value 0."""

    requests_by_code: dict[int, Counter]
    finish_by_reason: dict[str, Counter]
    duration: Histogram
    first_token: Histogram
    inter_token: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    feedback: dict[str, Counter]
    interactions: dict[str, Counter]
    retries: Counter
    fallbacks: Counter
    weight: Gauge
    _requests: Counter
    _finish: Counter
    _labels: tuple[str, str, str]

    def requests(self, code: int) -> Counter:
        """Requests answered with that status."""
        child = self.requests_by_code.get(code)
        if child is None:
            child = self.requests_by_code[code] = self._requests.labels(*self._labels, str(code))
        return child

    def finish(self, reason: str) -> Counter:
        """Answers that ended for that reason; anything an arm invents is counted as `other`."""
        child = self.finish_by_reason.get(reason)
        if child is None:
            child = self.finish_by_reason["other"] = self._finish.labels(*self._labels, "other")
        return child


@dataclass(slots=True)
class Metrics:
    """All series, in a registry of their own."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _arms: dict[tuple[str, str, str], ArmMetrics] = field(default_factory=dict)

    _requests: Counter = field(init=False)
    _duration: Histogram = field(init=False)
    _first_token: Histogram = field(init=False)
    _inter_token: Histogram = field(init=False)
    _tokens: Counter = field(init=False)
    _finish: Counter = field(init=False)
    _feedback: Counter = field(init=False)
    _weight: Gauge = field(init=False)
    _interactions: Counter = field(init=False)
    _retries: Counter = field(init=False)
    _fallbacks: Counter = field(init=False)
    refused: Counter = field(init=False)
    """Requests that reached no arm, by status."""
    spool_bytes: Gauge = field(init=False)
    """Bytes on disk that are not uploaded yet."""
    upload_failures: Counter = field(init=False)
    """Failed uploads of a segment, by cycle."""
    watch_up: Gauge = field(init=False)
    """Whether a resource's watch is connected."""

    def __post_init__(self) -> None:
        reg = self.registry
        ProcessCollector(registry=reg)
        PlatformCollector(registry=reg)
        self._requests = Counter(_stem(names.REQUESTS), "Requests, by status", [*_LABELS, "code"], registry=reg)
        self._duration = Histogram(names.DURATION, "Whole answer", _LABELS, buckets=names.LATENCY_BUCKETS, registry=reg)
        self._first_token = Histogram(
            names.TIME_TO_FIRST_TOKEN, "To the first non-empty content", _LABELS,
            buckets=names.LATENCY_BUCKETS, registry=reg,
        )  # fmt: skip
        self._inter_token = Histogram(
            names.INTER_TOKEN, "Between two chunks of content", _LABELS, buckets=_TOKEN_BUCKETS, registry=reg
        )
        self._tokens = Counter(_stem(names.TOKENS), "Tokens, by type", [*_LABELS, "type"], registry=reg)
        self._finish = Counter(_stem(names.FINISH), "Answers, by why they ended", [*_LABELS, "reason"], registry=reg)
        self._feedback = Counter(_stem(names.FEEDBACK), "First verdicts, by value", [*_LABELS, "value"], registry=reg)
        self._weight = Gauge(names.WEIGHT, "Percent of sessions sent to the version", _LABELS, registry=reg)
        self._interactions = Counter(
            _stem(names.INTERACTIONS), "Recorded interactions, by state", [*_LABELS, "state"], registry=reg
        )
        self._retries = Counter(
            "ratchet_gateway_retries", "Requests sent again because a pod was unreachable", _LABELS, registry=reg
        )
        self._fallbacks = Counter(
            "ratchet_gateway_fallbacks", "Requests of the version that stable answered instead", _LABELS, registry=reg
        )
        self.refused = Counter("ratchet_gateway_refused", "Requests for no arm, by status", ["code"], registry=reg)
        self.spool_bytes = Gauge("ratchet_gateway_spool_bytes", "Bytes on disk, not uploaded yet", registry=reg)
        self.upload_failures = Counter(
            "ratchet_gateway_upload_failures", "Failed uploads of a segment", _CYCLE_LABELS, registry=reg
        )
        self.watch_up = Gauge(
            "ratchet_gateway_watch_up", "Whether the watch is connected", ["resource", "watch_namespace"], registry=reg
        )

    def arm(self, namespace: str, cycle: str, version: str) -> ArmMetrics:
        """The series of one version, made with value 0 when it is new."""
        key = (namespace, cycle, version)
        found = self._arms.get(key)
        if found is None:
            found = self._arms[key] = self._make(key)
        return found

    def _make(self, key: tuple[str, str, str]) -> ArmMetrics:
        return ArmMetrics(
            requests_by_code={code: self._requests.labels(*key, str(code)) for code in _CODES},
            finish_by_reason={reason: self._finish.labels(*key, reason) for reason in _REASONS},
            duration=self._duration.labels(*key),
            first_token=self._first_token.labels(*key),
            inter_token=self._inter_token.labels(*key),
            prompt_tokens=self._tokens.labels(*key, "prompt"),
            completion_tokens=self._tokens.labels(*key, "completion"),
            feedback={value: self._feedback.labels(*key, value) for value in ("up", "down")},
            interactions={s: self._interactions.labels(*key, s) for s in ("spooled", "uploaded", "dropped")},
            retries=self._retries.labels(*key),
            fallbacks=self._fallbacks.labels(*key),
            weight=self._weight.labels(*key),
            _requests=self._requests,
            _finish=self._finish,
            _labels=key,
        )

    def weights(self, in_force: dict[tuple[str, str, str], int]) -> None:
        """Set the weight of every version; those that serve no more get 0."""
        for key in in_force:
            self.arm(*key)
        for key, arm in self._arms.items():
            arm.weight.set(in_force.get(key, 0))

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
