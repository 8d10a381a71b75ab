"""A real Kubernetes on one machine, without containers: etcd, API server, controllers, scheduler, Prometheus, S3 and
a node that runs containers as processes.

Room: local. Everybody else's entrance is this page's names; only the room `cli` and tests import it.
"""

from ratchet_local.config import ImageEnv, PlatformConfig, S3Access, default_images
from ratchet_local.errors import (
    AlreadyRunning,
    BuildError,
    CommandError,
    ComponentError,
    LocalError,
    NotRunning,
    PlatformError,
)
from ratchet_local.platform import Platform

__all__ = [
    "AlreadyRunning",
    "BuildError",
    "CommandError",
    "ComponentError",
    "ImageEnv",
    "LocalError",
    "NotRunning",
    "Platform",
    "PlatformConfig",
    "PlatformError",
    "S3Access",
    "default_images",
]
