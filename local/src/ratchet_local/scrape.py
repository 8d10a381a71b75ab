"""What the local Prometheus scrapes, as the configuration it reads.

Room: local. Pure.
"""

from pathlib import Path
from typing import Any

_ANNOTATION = "__meta_kubernetes_pod_annotation_prometheus_io_"
_POD_LABELS = {"cycle": "ratchet_cycle", "version": "ratchet_version", "stage": "ratchet_stage", "arm": "ratchet_arm"}
"""`ratchet.dev/<key>` on a pod to the label that its series carry."""


def prometheus_config(kubeconfig: Path | None, interval_seconds: float) -> dict[str, Any]:
    """Scrape itself, and the pods that ask for it by annotation (`prometheus.io/scrape`, `port`, `path`, `scheme`).

    A pod's own labels win over ours (`honor_labels`): the gateway says for which cycle and version it speaks.
    """
    interval = f"{round(interval_seconds * 1000)}ms"
    jobs: list[dict[str, Any]] = []
    if kubeconfig is not None:
        jobs.append(
            {
                "job_name": "pods",
                "honor_labels": True,
                "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
                "relabel_configs": _pod_rules(),
            }
        )
    return {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "scrape_configs": jobs,
    }


def _pod_rules() -> list[dict[str, Any]]:
    def copy(source: str, target: str) -> dict[str, Any]:
        return {"source_labels": [source], "target_label": target}

    rules: list[dict[str, Any]] = [
        {"source_labels": [f"{_ANNOTATION}scrape"], "regex": "true", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"},
        # One target per pod, whichever container port the discovery started from.
        {"source_labels": ["__meta_kubernetes_pod_container_init"], "regex": "true", "action": "drop"},
        {"source_labels": [f"{_ANNOTATION}scheme"], "regex": "(https?)", "target_label": "__scheme__"},
        {"source_labels": [f"{_ANNOTATION}path"], "regex": "(.+)", "target_label": "__metrics_path__"},
        {
            "source_labels": ["__meta_kubernetes_pod_ip", f"{_ANNOTATION}port"],
            "regex": "(.+);(.+)",
            "replacement": "$1:$2",
            "target_label": "__address__",
        },
        copy("__meta_kubernetes_namespace", "namespace"),
        copy("__meta_kubernetes_pod_name", "pod"),
    ]
    rules += [
        {
            "source_labels": [f"__meta_kubernetes_pod_label_ratchet_dev_{key}"],
            "regex": "(.+)",
            "target_label": label,
        }
        for key, label in _POD_LABELS.items()
    ]
    return rules
