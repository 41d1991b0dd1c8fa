"""What the cluster's exporter serves, as its scraper sees it."""

from __future__ import annotations

import os
import socket
import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families

from qttdm.common.metrics.instruments import COMMON
from qttdm.deploy.cluster.reporting import find_exporter

Samples = dict[tuple[str, ...], float]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def scrape(port: int) -> Samples:
    """All samples: by name, seed, component, index, then own label and bucket. {} if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            _, *common = [labels.pop(name, "") for name in COMMON]
            del common[1]  # the task
            bound = [labels.pop("le")] if "le" in labels else []
            samples[sample.name, *common, *labels.values(), *bound] = sample.value
    return samples


def exporter_pid() -> int:
    answer = find_exporter().__ray_call__.remote(lambda self: os.getpid())
    return int(ray.get(answer, timeout=60))
