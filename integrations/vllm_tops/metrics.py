"""What a server prunes, for those who ask it: a line of its ``/metrics``."""

from functools import cache

from prometheus_client import Gauge

from vllm_tops.settings import read_pruning

NAME = "tops_pruning_info"


@cache  # A metric can be registered once in a process; vLLM may load plugins twice.
def publish_pruning() -> None:
    """Show ``tops_pruning_info{method="tops",keep="0.222",stages="first"} 1`` beside vLLM's own metrics.

    The method, the budget, and each option given for the method are labels; the value is always 1. Where several API
    server processes share their metrics through files, all of them say the same and it is shown once.
    """
    pruning = read_pruning()
    labels = {"method": pruning.method, "keep": str(pruning.keep)}
    labels |= {name: str(value) for name, value in (pruning.model_extra or {}).items()}
    # Prometheus' own type for this, Info, cannot be shared between processes.
    gauge = Gauge(NAME, "How pictures are pruned.", tuple(labels), multiprocess_mode="mostrecent")
    gauge.labels(**labels).set(1)
