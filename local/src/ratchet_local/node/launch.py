"""From a container's spec to a command that can be started here.

Room: local. Makes the container's folders; reads ConfigMaps and Secrets for its environment.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ratchet_local.config import ImageEnv
from ratchet_local.kubeconfig import write_kubeconfig
from ratchet_local.node.context import PodContext
from ratchet_local.node.environment import ConfigError, container_environment, expand, needed
from ratchet_local.node.model import Container
from ratchet_local.node.paths import rewriter
from ratchet_local.node.process import INHERITED, Launch
from ratchet_local.node.volumes import DataReader


@dataclass(frozen=True)
class Prepared:
    """A container ready to start."""

    launch: Launch
    rewrite: Callable[[str], str]
    variables: Mapping[str, str]
    """The pod's own variables, not rewritten: what `$(VAR)` refers to."""
    termination_log: Path

    def command(self, argv: list[str]) -> Launch:
        """Another command in the same surroundings: exec probes and hooks."""
        return replace(self.launch, argv=tuple(self.rewrite(part) for part in argv))


async def prepare(context: PodContext, container: Container, image: ImageEnv) -> Prepared:
    """Folders, environment and command line of the next run.

    Raises ConfigError when the configuration is incomplete, in a kubelet's words.
    """
    folder = context.root / container.name
    work, termination_log = _folders(folder)
    variables = await _variables(context, container)
    mounts = {mount.mount_path: str(context.volumes.mount(mount)) for mount in container.volume_mounts}
    mounts[container.termination_message_path] = str(termination_log)
    rewrite = rewriter(mounts, context.pod_ip)
    argv = [expand(part, variables) for part in (container.command or image.image_command)]
    argv += [expand(part, variables) for part in container.args]
    if not argv:
        raise ConfigError(f'no command specified: neither the container nor the image "{container.image}" has one')
    env = _base_environment(context, container, image, folder)
    env |= {name: rewrite(value) for name, value in variables.items()}
    cwd = _cwd(container, mounts, rewrite, work)
    launch = Launch(tuple(rewrite(part) for part in argv), env, cwd, context.node.mark)
    return Prepared(launch, rewrite, variables, termination_log)


async def _variables(context: PodContext, container: Container) -> dict[str, str]:
    maps, secrets = needed(container)
    reader = DataReader(context.node.api, context.pod.metadata.namespace)
    return container_environment(
        context.pod,
        container,
        context.pod_ip,
        context.node.facts,
        await reader.text(maps, "configmaps"),
        await reader.text(secrets, "secrets"),
    )


def _folders(folder: Path) -> tuple[Path, Path]:
    """A fresh, empty working folder, home and scratch for every run: a container starts from its image."""
    for name in ("work", "tmp", "home"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    termination_log = folder / "termination-log"
    termination_log.write_bytes(b"")
    return folder / "work", termination_log


def _base_environment(context: PodContext, container: Container, image: ImageEnv, folder: Path) -> dict[str, str]:
    settings = context.node.settings
    host, port = settings.api_url.removeprefix("https://").rsplit(":", 1)
    path = os.pathsep.join([*map(str, image.path), os.environ.get("PATH", os.defpath)])
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {
        "PATH": path,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "HOSTNAME": context.pod.spec.hostname or context.pod.metadata.name,
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "KUBERNETES_SERVICE_PORT_HTTPS": port,
        "KUBERNETES_PORT": f"tcp://{host}:{port}",
    }
    token = context.volumes.token_file()
    if token is not None:
        # In-cluster configuration reads fixed paths that cannot exist here; every client falls back to KUBECONFIG.
        kubeconfig = context.root / "kubeconfig.yaml"
        write_kubeconfig(
            kubeconfig, settings.api_url, settings.authority, context.pod.spec.service_account_name,
            token_file=token, namespace=context.pod.metadata.namespace,
        )  # fmt: skip
        env["KUBECONFIG"] = str(kubeconfig)
    return env | image.env


def _cwd(container: Container, mounts: Mapping[str, str], rewrite: Callable[[str], str], work: Path) -> Path:
    """The working folder if it lies in a volume; what lies in the image does not exist here."""
    wanted = container.working_dir
    if wanted and any(wanted == path or wanted.startswith(path.rstrip("/") + "/") for path in mounts):
        folder = Path(rewrite(wanted))
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return work
