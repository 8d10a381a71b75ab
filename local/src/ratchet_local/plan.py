"""Which processes a platform consists of, on which addresses, with which flags.

Room: local. `prepare` writes certificates, kubeconfigs and configuration files into the state folder; the builders
are pure.
"""

import json
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from ratchet_local.addresses import Subnet, choose_port
from ratchet_local.component import Component, Ready
from ratchet_local.config import Layout, PlatformConfig, S3Access
from ratchet_local.kubeconfig import write_kubeconfig
from ratchet_local.pki import Authority, KeyPair, service_account_key
from ratchet_local.scrape import prometheus_config

SERVICE_RANGE = "10.96.0.0/24"

CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "replicationcontroller-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
    "taint-eviction-controller",
    "ttl-after-finished-controller",
)
"""Everything that our objects need. The endpoint-slice controllers are left out: they refuse loopback addresses."""


@dataclass(frozen=True)
class Ports:
    """Where each server of the platform listens, all on the platform's own address."""

    etcd: int
    etcd_peer: int
    api: int
    controller_manager: int
    scheduler: int
    kubelet: int
    prometheus: int
    s3: int
    s3_master: int
    s3_volume: int
    s3_filer: int
    s3_grpc: tuple[int, int, int, int]
    """gRPC ports of master, volume, filer and S3."""
    s3_admin: tuple[int, int]
    """HTTP and gRPC port of SeaweedFS' administration, which cannot be left out."""

    @classmethod
    def choose(cls, address: str) -> "Ports":
        """The usual numbers where they are free, others where something else listens on all addresses."""
        taken: set[int] = set()

        def pick(preferred: int) -> int:
            return choose_port(address, preferred, taken)

        # SeaweedFS listens on 127.0.0.1 as well, whatever -ip.bind says, and refuses a port that anybody has on any
        # address. So every platform asks for numbers of its own, or two that start at once would take the same.
        _, second, third, _ = (int(part) for part in address.split("."))
        own = 20_000 + (second * 256 + third) % 1200 * 10

        def pick_for_s3(number: int) -> int:
            return choose_port(address, own + number, taken, also="0.0.0.0")

        return cls(
            etcd=pick(2379), etcd_peer=pick(2380), api=pick(6443), controller_manager=pick(10257),
            scheduler=pick(10259), kubelet=pick(10250), prometheus=pick(9090), s3=pick_for_s3(0),
            s3_master=pick_for_s3(1), s3_volume=pick_for_s3(2), s3_filer=pick_for_s3(3),
            s3_grpc=(pick_for_s3(4), pick_for_s3(5), pick_for_s3(6), pick_for_s3(7)),
            s3_admin=(pick_for_s3(8), pick_for_s3(9)),
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that the supervisor needs to run a platform."""

    config: PlatformConfig
    layout: Layout
    subnet: Subnet
    ports: Ports
    binaries: dict[str, Path]
    authority: Path
    admin: KeyPair
    s3: S3Access
    components: tuple[Component, ...]

    @property
    def api_url(self) -> str:
        return f"https://{self.subnet.platform}:{self.ports.api}"

    @property
    def prometheus_url(self) -> str:
        return f"http://{self.subnet.platform}:{self.ports.prometheus}"


@dataclass(frozen=True)
class _Site:
    """What the builders share."""

    config: PlatformConfig
    layout: Layout
    address: str
    subnet: Subnet
    ports: Ports
    binaries: dict[str, Path]
    authority: Path
    pairs: dict[str, KeyPair]

    @property
    def api_url(self) -> str:
        return f"https://{self.address}:{self.ports.api}"

    def kubeconfig(self, user: str) -> Path:
        return self.layout.kubeconfigs / f"{user}.yaml"


def prepare(config: PlatformConfig, subnet: Subnet, binaries: dict[str, Path]) -> Plan:
    """Write certificates, kubeconfigs and configurations; return the processes to run."""
    layout = Layout(config.state)
    ports = Ports.choose(subnet.platform)
    authority = Authority(layout.pki)
    address = subnet.platform
    server_names = (address, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "10.96.0.1")
    pairs = {
        "admin": authority.issue("admin", "ratchet-local-admin", "system:masters"),
        "etcd": authority.issue("etcd", "etcd", names=(address, "localhost")),
        "apiserver": authority.issue("apiserver", "kube-apiserver", names=server_names),
        "apiserver-kubelet": authority.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
        "controller-manager": authority.issue("controller-manager", "system:kube-controller-manager", names=(address,)),
        "scheduler": authority.issue("scheduler", "system:kube-scheduler", names=(address,)),
        "node": authority.issue("node", f"system:node:{config.name}", "system:nodes", names=(address, config.name)),
        "prometheus": authority.issue("prometheus", "ratchet-local-prometheus"),
    }
    site = _Site(config, layout, address, subnet, ports, binaries, authority.pair.cert, pairs)
    for user in ("admin", "controller-manager", "scheduler", "node", "prometheus"):
        write_kubeconfig(
            site.kubeconfig(user), site.api_url, site.authority, user, client=pairs[user], context=config.name
        )
    s3 = _s3_access(site)
    components: list[Component] = []
    if "control-plane" in config.parts:
        components += control_plane(site, service_account_key(layout.pki))
    if "prometheus" in config.parts:
        components.append(prometheus(site))
    if "s3" in config.parts:
        components.append(s3_server(site, s3))
    if "node" in config.parts:
        components.append(node(site))
    return Plan(config, layout, subnet, ports, binaries, site.authority, pairs["admin"], s3, tuple(components))


def control_plane(site: _Site, service_account: KeyPair) -> list[Component]:
    """etcd, the API server, the controllers and the scheduler."""
    controllers = _controller_manager(site, service_account)
    return [_etcd(site), _api_server(site, service_account), controllers, _scheduler(site)]


def _etcd(site: _Site) -> Component:
    pair = site.pairs["etcd"]
    client = f"https://{site.address}:{site.ports.etcd}"
    peer = f"https://{site.address}:{site.ports.etcd_peer}"
    return Component(
        "etcd",
        (
            str(site.binaries["etcd"]),
            "--name=local",
            f"--data-dir={site.layout.etcd}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=local={peer}",
            f"--cert-file={pair.cert}",
            f"--key-file={pair.key}",
            f"--trusted-ca-file={site.authority}",
            "--client-cert-auth",
            f"--peer-cert-file={pair.cert}",
            f"--peer-key-file={pair.key}",
            f"--peer-trusted-ca-file={site.authority}",
            "--peer-client-cert-auth",
            # State that survives a power cut is not what a local platform is for; speed is.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
        Ready(f"{client}/health", site.authority, pair),
    )


def _api_server(site: _Site, service_account: KeyPair) -> Component:
    serving, etcd, kubelet = site.pairs["apiserver"], site.pairs["etcd"], site.pairs["apiserver-kubelet"]
    return Component(
        "kube-apiserver",
        (
            str(site.binaries["kube-apiserver"]),
            f"--bind-address={site.address}",
            f"--advertise-address={site.address}",
            f"--secure-port={site.ports.api}",
            f"--etcd-servers=https://{site.address}:{site.ports.etcd}",
            f"--etcd-cafile={site.authority}",
            f"--etcd-certfile={etcd.cert}",
            f"--etcd-keyfile={etcd.key}",
            f"--tls-cert-file={serving.cert}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={site.authority}",
            f"--kubelet-certificate-authority={site.authority}",
            f"--kubelet-client-certificate={kubelet.cert}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={service_account.cert}",
            f"--service-account-signing-key-file={service_account.key}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            # It would try to publish its own loopback address as an endpoint, which is refused.
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            "--profiling=false",
        ),
        Ready(f"{site.api_url}/readyz", site.authority, site.pairs["admin"]),
        after=("etcd",),
        grace_seconds=20.0,
    )


def _controller_manager(site: _Site, service_account: KeyPair) -> Component:
    pair, kubeconfig = site.pairs["controller-manager"], site.kubeconfig("controller-manager")
    return Component(
        "kube-controller-manager",
        (
            str(site.binaries["kube-controller-manager"]),
            f"--kubeconfig={kubeconfig}",
            f"--bind-address={site.address}",
            f"--secure-port={site.ports.controller_manager}",
            f"--tls-cert-file={pair.cert}",
            f"--tls-private-key-file={pair.key}",
            f"--controllers={','.join(CONTROLLERS)}",
            f"--service-account-private-key-file={service_account.key}",
            f"--root-ca-file={site.authority}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--profiling=false",
        ),
        Ready(f"https://{site.address}:{site.ports.controller_manager}/healthz", site.authority),
        after=("kube-apiserver",),
    )


def _scheduler(site: _Site) -> Component:
    pair, kubeconfig = site.pairs["scheduler"], site.kubeconfig("scheduler")
    return Component(
        "kube-scheduler",
        (
            str(site.binaries["kube-scheduler"]),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--bind-address={site.address}",
            f"--secure-port={site.ports.scheduler}",
            f"--tls-cert-file={pair.cert}",
            f"--tls-private-key-file={pair.key}",
            "--leader-elect=false",
            "--profiling=false",
        ),
        Ready(f"https://{site.address}:{site.ports.scheduler}/healthz", site.authority),
        after=("kube-apiserver",),
    )


def prometheus(site: _Site) -> Component:
    """Prometheus with pod discovery by annotation."""
    file = site.layout.prometheus / "prometheus.yml"
    kubeconfig = site.kubeconfig("prometheus") if "control-plane" in site.config.parts else None
    file.write_text(
        yaml.safe_dump(prometheus_config(kubeconfig, site.config.scrape_interval_seconds), sort_keys=False),
        encoding="utf-8",
    )
    url = f"http://{site.address}:{site.ports.prometheus}"
    return Component(
        "prometheus",
        (
            str(site.binaries["prometheus"]),
            f"--config.file={file}",
            f"--storage.tsdb.path={site.layout.prometheus / 'data'}",
            "--storage.tsdb.retention.time=7d",
            f"--web.listen-address={site.address}:{site.ports.prometheus}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ),
        Ready(f"{url}/-/ready"),
    )


def _s3_access(site: _Site) -> S3Access:
    """The S3 server's address and its keys, which are made once per state folder."""
    file = site.layout.pki / "s3.json"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}))
    keys = json.loads(file.read_text())
    return S3Access(endpoint=f"http://{site.address}:{site.ports.s3}", **keys)


def s3_server(site: _Site, access: S3Access) -> Component:
    """SeaweedFS with everything on except what nobody here asks for."""
    ports = site.ports
    master, volume, filer, s3 = ports.s3_grpc
    admin, admin_grpc = ports.s3_admin
    data, scratch = site.layout.s3, site.layout.run
    sockets = (("master", master), ("volume", volume), ("filer", filer), ("s3", s3), ("admin", admin_grpc))
    return Component(
        "s3",
        (
            str(site.binaries["weed"]),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            f"-ip={site.address}",
            f"-ip.bind={site.address}",
            f"-master.port={ports.s3_master}",
            f"-master.port.grpc={master}",
            f"-volume.port={ports.s3_volume}",
            f"-volume.port.grpc={volume}",
            f"-filer.port={ports.s3_filer}",
            f"-filer.port.grpc={filer}",
            f"-s3.port={ports.s3}",
            f"-s3.port.grpc={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            f"-admin.port={admin}",
            f"-admin.port.grpc={admin_grpc}",
            "-admin.ui=false",
            # Relative to the folder of the logs, because a unix socket's address has room for 108 bytes only.
            "-filer.localSocket=../run/s3-filer.sock",
            "-s3.localSocket=../run/s3.sock",
            "-master.telemetry=false",
            # The answer to a missing bucket must be NoSuchBucket, as on any other S3.
            "-s3.autoCreateBucket=false",
            "-volume.preStopSeconds=0",
            # Each bucket takes a volume of its own, and what it reckons from the free disk may be a few dozen.
            "-volume.max=10000",
        ),
        # Without a signature the server refuses: a refusal proves that it is up and that it checks.
        Ready(f"{access.endpoint}/", statuses=frozenset({200, 403})),
        env={
            "AWS_ACCESS_KEY_ID": access.access_key,
            "AWS_SECRET_ACCESS_KEY": access.secret_key,
            "TMPDIR": str(scratch),
        },
        grace_seconds=15.0,
        # SeaweedFS has this folder built in.
        litter=tuple(Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock") for name, port in sockets),
    )


def node(site: _Site) -> Component:
    """The process node, our stand-in for a kubelet."""
    settings = {
        "name": site.config.name,
        "state": str(site.layout.node),
        "socket": str(site.layout.node_socket),
        "instance_state": str(site.layout.state),
        "subnet": {"second": site.subnet.second, "third": site.subnet.third},
        "port": site.ports.kubelet,
        "api_url": site.api_url,
        "authority": str(site.authority),
        "cert": str(site.pairs["node"].cert),
        "key": str(site.pairs["node"].key),
        "gpus": site.config.gpus,
        "cpus": site.config.cpus,
        "backoff_seconds": list(site.config.backoff_seconds),
        "images": {key: env.model_dump(mode="json") for key, env in site.config.known_images().items()},
    }
    file = site.layout.node / "settings.json"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return Component(
        "node",
        (sys.executable, "-m", "ratchet_local.node", str(file)),
        Ready(f"https://{site.address}:{site.ports.kubelet}/healthz", site.authority, site.pairs["apiserver-kubelet"]),
        after=("kube-apiserver",),
        grace_seconds=30.0,
    )
