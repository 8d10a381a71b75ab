"""What a person may choose about a local platform, and where its things lie in the state folder.

Room: local. Pure, apart from `default_images`, which asks which Python interpreter runs.
"""

import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Part = Literal["control-plane", "prometheus", "s3", "node"]
PARTS: frozenset[str] = frozenset(get_args(Part))


class ImageEnv(BaseModel):
    """How the process node runs an image name without a container."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: list[Path] = Field(default_factory=list)
    """Folders that are put in front of PATH."""
    env: dict[str, str] = Field(default_factory=dict)
    """The image's own environment; the pod's entries win."""
    image_command: tuple[str, ...] = ()
    """The image's entry point: runs when the container names no `command`."""


def default_images() -> dict[str, ImageEnv]:
    """Image patterns (fnmatch, without tag or digest) to what runs them: every Ratchet image is the current venv."""
    bin_folder = Path(sys.executable).parent
    variables = {"PYTHONUNBUFFERED": "1"}
    images: dict[str, ImageEnv] = {}
    for component, module in (
        ("operator", "ratchet_operator"),
        ("gateway", "ratchet_gateway"),
        ("trainer", "ratchet_trainer"),
    ):
        env = ImageEnv(path=[bin_folder], env=variables, image_command=(sys.executable, "-m", module))
        images[f"ratchet/{component}"] = env
        images[f"*/ratchet-{component}"] = env
        images[f"*/ratchet/{component}"] = env
    anything = ImageEnv(path=[bin_folder], env=variables)
    return images | {"ratchet/*": anything, "*/ratchet-*": anything, "*/ratchet/*": anything}


def image_name(reference: str) -> str:
    """`host:5000/org/name:tag@digest` without tag and digest: `host:5000/org/name`."""
    name = reference.split("@", 1)[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.split(':', 1)[0]}"


def find_image(images: dict[str, ImageEnv], reference: str) -> ImageEnv | None:
    """The first entry (exact names before patterns, in order) that runs this image reference; None when none does."""
    name = image_name(reference)
    for key in (reference, name):
        if key in images:
            return images[key]
    return next((env for pattern, env in images.items() if fnmatchcase(name, pattern)), None)


class PlatformConfig(BaseModel):
    """One local platform. `state` holds everything that it writes; two platforms need two state folders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Path
    parts: frozenset[Part] = frozenset(get_args(Part))
    gpus: int = Field(default=0, ge=0, le=1024)
    """`nvidia.com/gpu` that the node advertises: a number for the scheduler, no hardware behind it."""
    images: dict[str, ImageEnv] = Field(default_factory=dict)
    """Image names or fnmatch patterns beside, and before, those of `default_images()`."""
    name: str = Field(default="local", pattern=r"^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$")
    """Of the node and of the kubeconfig's context."""
    cpus: int = Field(default=64, ge=1)
    """Allocatable cores of the node: generous, so that the scheduler never starves a laptop's demonstration."""
    scrape_interval_seconds: float = Field(default=2.0, gt=0)
    backoff_seconds: tuple[float, float] = (1.0, 10.0)
    """First and longest pause before a crashed container starts again (a kubelet: 10 s to 5 min)."""

    def known_images(self) -> dict[str, ImageEnv]:
        """Own images first, then the defaults."""
        return self.images | {key: env for key, env in default_images().items() if key not in self.images}


class S3Access(BaseModel):
    """How to reach the platform's S3 server."""

    model_config = ConfigDict(frozen=True)

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def create_bucket(self, name: str) -> None:
        """Create a bucket unless it exists. Names have 3 to 63 characters.

        Raises ValueError for a name that is too short; botocore's errors for anything the server refuses.
        """
        if len(name) < 3:
            raise ValueError(f"bucket name {name!r} is too short: S3 wants at least 3 characters")
        client = self.client()
        try:
            client.create_bucket(Bucket=name)
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            return

    def client(self) -> Any:
        """A boto3 S3 client with path-style addressing."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3, "mode": "standard"}),
        )

    def env(self) -> dict[str, str]:
        """The variables from which boto3 and the AWS tools read all of this."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
        }


class Layout:
    """Names of everything inside a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self.config = self.state / "platform.json"
        self.record = self.state / "running.json"
        """Written by the supervisor when all parts are ready; how others attach."""
        self.lock = self.state / "lock"
        self.pki = self.state / "pki"
        self.kubeconfigs = self.state / "kubeconfig"
        self.admin_kubeconfig = self.kubeconfigs / "admin.yaml"
        self.logs = self.state / "logs"
        self.etcd = self.state / "etcd"
        self.s3 = self.state / "s3"
        self.prometheus = self.state / "prometheus"
        self.node = self.state / "node"
        self.run = self.state / "run"
        """Control sockets."""
        self.supervisor_socket = self.run / "supervisor.sock"
        self.node_socket = self.run / "node.sock"

    def make(self) -> None:
        """Create the folders; only the owner may look inside, because keys lie there."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o700)
        for folder in (
            self.pki, self.kubeconfigs, self.logs, self.etcd, self.s3, self.prometheus, self.node, self.run,
        ):  # fmt: skip
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
