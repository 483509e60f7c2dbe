"""A runner's metrics, under the names vLLM gave them, so that dashboards made for it work. One registry per runner."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from data_plane.engine.engine import EngineStats

_LENGTHS = [float(4**power) for power in range(9)] + [float("inf")]
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_REQUEST_S = [0.01 * 2**power for power in range(14)]


_ENGINE_COUNTERS: list[tuple[str, str, Callable[[EngineStats], float]]] = [
    ("generation_tokens", "Tokens made.", lambda now: now.generated_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda now: now.prefix_cache_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda now: now.prefix_cache_hits),
    ("num_preemptions", "Requests put back because the KV cache was full.", lambda now: now.preemptions),
    ("spec_decode_num_drafts", "Times that tokens were guessed ahead.", lambda now: now.num_drafts),
    ("spec_decode_num_draft_tokens", "Tokens guessed ahead.", lambda now: now.num_draft_tokens),
    ("spec_decode_num_accepted_tokens", "Guessed tokens that were right.", lambda now: now.num_accepted_tokens),
    ("engine_steps", "Steps of the engine.", lambda now: now.steps),
    ("engine_host_seconds", "Time of the steps outside the model.", lambda now: now.host_s),
    ("engine_executor_seconds", "Time of the steps inside the model.", lambda now: now.executor_s),
    ("engine_overlapped_seconds", "Host work done while the model ran.", lambda now: now.overlapped_s),
]


class Metrics:
    """Counts what the requests and the engine do. Times are seconds of one monotonic clock.

    Make it in the thread that speaks HTTP, and read it there: that thread's CPU time is among the counters.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._seen: EngineStats | None = None
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self._counters = [(self._counter(name, text), read) for name, text, read in _ENGINE_COUNTERS]
        self._http_cpu = self._counter("runner_http_cpu_seconds", "CPU time of the thread that speaks HTTP.", "ebb")
        self._http_seen_s = time.thread_time()
        self._success = Counter(
            "vllm:request_success", "Ended requests.", ["model_name", "finished_reason"], registry=self._registry
        )
        self.ttft_s = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _TTFT_S)
        self.itl_s = self._histogram("inter_token_latency_seconds", "Between two tokens of a request.", _ITL_S)
        self.e2e_s = self._histogram("e2e_request_latency_seconds", "From arrival to the end.", _REQUEST_S)
        self.decode_s = self._histogram("request_decode_time_seconds", "From the first token to the last.", _REQUEST_S)
        self.queue_s = self._histogram("request_queue_time_seconds", "From arrival to the first step.", _REQUEST_S)
        self.prefill_s = self._histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", _REQUEST_S
        )
        self.request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _LENGTHS)
        self.request_generation = self._histogram("request_generation_tokens", "Tokens of an answer.", _LENGTHS)
        self.iteration_tokens = self._histogram("iteration_tokens_total", "Tokens computed in one step.", _LENGTHS)

    def ended(self, reason: str) -> None:
        """One request ended with `reason`."""
        self._success.labels(self._model_name, reason).inc()

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Gauges that ask the engine when they are read."""
        first = stats()
        gauges: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
            "num_requests_running": ("Requests in the batch.", lambda now: now.running),
            "num_requests_waiting": ("Requests not yet in the batch.", lambda now: now.waiting),
            "kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1.", lambda now: now.kv_usage),
        }
        for name, (text, read) in gauges.items():
            gauge = Gauge(f"vllm:{name}", text, ["model_name"], registry=self._registry).labels(self._model_name)
            gauge.set_function(lambda read=read: float(read(stats())))
        info = Gauge(
            "vllm:cache_config_info",
            "The KV cache's shape.",
            ["model_name", "block_size", "num_gpu_blocks"],
            registry=self._registry,
        )
        info.labels(self._model_name, str(first.block_size), str(first.num_blocks)).set(1)

    def step(self, stats: EngineStats) -> None:
        """Takes in one step of the engine."""
        seen, self._seen = self._seen, stats
        for counter, read in self._counters:
            more = read(stats) - (read(seen) if seen else 0)
            if more:
                counter.inc(more)
        computed = stats.computed_tokens - (seen.computed_tokens if seen else 0)
        if computed:
            self.iteration_tokens.observe(computed)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        now_s = time.thread_time()
        self._http_cpu.inc(max(0.0, now_s - self._http_seen_s))
        self._http_seen_s = now_s
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, prefix: str = "vllm") -> Counter:
        return Counter(f"{prefix}:{name}", text, ["model_name"], registry=self._registry).labels(self._model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] | list[float]) -> Histogram:
        made = Histogram(f"vllm:{name}", text, ["model_name"], registry=self._registry, buckets=buckets)
        return made.labels(self._model_name)
