"""Publish the server's pruning as a line of its ``/metrics``."""

from functools import cache

from prometheus_client import Gauge

from vllm_tops.settings import read_pruning

NAME = "tops_pruning_info"


@cache  # A process can register a metric only once, but vLLM may load plugins twice.
def publish_pruning() -> None:
    """Add ``tops_pruning_info{method="tops",keep="0.222",stages="first"} 1`` to vLLM's own metrics.

    The labels are the method, the budget, and each option given for the method; the value is always 1. If several API
    server processes share their metrics through files, all of them report the same line and it is shown once.
    """
    pruning = read_pruning()
    labels = {"method": pruning.method, "keep": str(pruning.budget)}
    labels |= {name: str(value) for name, value in (pruning.model_extra or {}).items()}
    labels |= {"merge": "true"} if pruning.merge else {}
    # Processes cannot share Prometheus' own type for this purpose, Info.
    gauge = Gauge(NAME, "How pictures are pruned.", tuple(labels), multiprocess_mode="mostrecent")
    gauge.labels(**labels).set(1)
