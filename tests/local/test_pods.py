"""The process node, seen through kubectl: what a pod may ask for, and what becomes of it."""

import json
import subprocess
import textwrap
from typing import Any

import pytest

from ratchet_local import CommandError
from ratchet_operator.manifests.pods import input_owner

from .conftest import Cluster, condition, container_of, python_pod

pytestmark = pytest.mark.apiserver

CALL_API = """
import json, os, pathlib, ssl, sys, urllib.request
folder = pathlib.Path(sys.argv[1])
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
request = urllib.request.Request(
    f"{url}/api/v1/namespaces/{(folder / 'namespace').read_text()}/configmaps/settings",
    headers={"Authorization": f"Bearer {(folder / 'token').read_text()}"},
)
with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=str(folder / "ca.crt"))) as answer:
    print("color from the API:", json.load(answer)["data"]["color"])
print("color from the file:", (pathlib.Path(sys.argv[2]) / "color").read_text())
print("left by init:", pathlib.Path(sys.argv[3]).read_text())
print("variables:", os.environ["GREETING"], os.environ["FROM_IMAGE"], os.environ["NODE"], os.environ["VOLUME"])
print("leaked:", os.environ.get("PYTEST_CURRENT_TEST"))
try:
    urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1/secrets", headers=request.headers),
                           context=ssl.create_default_context(cafile=str(folder / "ca.crt")))
except urllib.error.HTTPError as error:
    print("secrets:", error.code)
"""


def rbac() -> list[dict[str, Any]]:
    api = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
        {
            "apiVersion": f"{api}/v1", "kind": "Role", "metadata": {"name": "reader"},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}],
        },
        {
            "apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader"}],
        },
    ]  # fmt: skip


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_init_container_config_map_and_token_under_its_own_account(here: Cluster) -> None:
    mounts = [{"name": "settings", "mountPath": "/etc/settings"}, {"name": "shared", "mountPath": "/var/shared"}]
    pod = python_pod(
        "caller", CALL_API, "/var/run/secrets/kubernetes.io/serviceaccount", "/etc/settings", "/var/shared/note",
        serviceAccountName="reader",
        container={
            "volumeMounts": mounts,
            "env": [
                {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                {"name": "GREETING", "value": "hello $(WHO) $$(WHO)"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "VOLUME", "value": "/var/shared/x"},
            ],
        },
        initContainers=[
            {
                "name": "prepare", "image": "test/python", "volumeMounts": mounts,
                "command": ["python", "-c", "import sys; open(sys.argv[1], 'w').write('a note')", "/var/shared/note"],
            }
        ],
        volumes=[
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "shared", "emptyDir": {}},
        ],
    )  # fmt: skip
    here.apply(*rbac(), config_map("settings", color="green"), pod)
    status = here.pod_until("caller", lambda s: s["phase"] in ("Succeeded", "Failed"))
    said = here.kubectl("logs", "caller")
    assert status["phase"] == "Succeeded", said
    volume = str(here.platform.layout.node / "pods")
    lines = dict(line.split(": ", 1) for line in said.strip().splitlines())
    assert lines["color from the API"] == "green"
    assert lines["color from the file"] == "green"
    assert lines["left by init"] == "a note"
    assert lines["secrets"] == "403"
    assert lines["leaked"] == "None"
    assert lines["variables"].startswith(f"hello {here.namespace} $(WHO) yes room {volume}")
    assert status["initContainerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"
    assert condition(status, "Initialized")["status"] == "True"
    assert condition(status, "Ready") | {"reason": "PodCompleted", "status": "False"} == condition(status, "Ready")


def test_standard_client_uses_the_pods_account(here: Cluster) -> None:
    code = """
    import kubernetes
    try:
        kubernetes.config.load_incluster_config()
    except kubernetes.config.ConfigException:
        kubernetes.config.load_kube_config()
    import os
    print(kubernetes.client.CoreV1Api().read_namespaced_config_map("settings", os.environ["NS"]).data["color"])
    """
    here.apply(
        *rbac(),
        config_map("settings", color="blue"),
        python_pod(
            "client", textwrap.dedent(code), serviceAccountName="reader",
            container={"env": [{"name": "NS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]},
        ),
    )  # fmt: skip
    status = here.pod_until("client", lambda s: s["phase"] in ("Succeeded", "Failed"))
    assert (status["phase"], here.kubectl("logs", "client")) == ("Succeeded", "blue\n")


def test_missing_secret_is_said_and_waited_for(here: Cluster) -> None:
    env = [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}}]
    here.apply(python_pod("needy", "import os; print(os.environ['PASSWORD'])", container={"env": env}))
    status = here.pod_until("needy", lambda s: container_of(s)["state"].get("waiting", {}).get("message"))
    waiting = container_of(status)["state"]["waiting"]
    assert waiting == {"reason": "CreateContainerConfigError", "message": 'secret "login" not found'}
    assert ("Failed", 'Error: secret "login" not found') in here.until(lambda: here.events("needy"), "events")
    here.kubectl("create", "secret", "generic", "login", "--from-literal=password=open sesame")
    here.pod_until("needy", lambda s: s["phase"] == "Succeeded")
    assert here.kubectl("logs", "needy") == "open sesame\n"


def test_missing_volume_and_unsupported_volume_are_said(here: Cluster) -> None:
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    here.apply(
        python_pod("nomap", "pass", container=mount, volumes=[{"name": "data", "configMap": {"name": "absent"}}]),
        python_pod("noclaim", "pass", container=mount, volumes=[{"name": "data", "nfs": {"server": "x", "path": "/"}}]),
    )

    def said(name: str, text: str) -> bool:
        return any(reason == "FailedMount" and text in message for reason, message in here.events(name))

    here.until(lambda: said("nomap", 'volume "data" : configmap "absent" not found'), "FailedMount of nomap")
    here.until(lambda: said("noclaim", "process node supports configMap, secret"), "FailedMount of noclaim")


def test_config_map_volume_follows_changes(here: Cluster) -> None:
    code = """
    import pathlib, sys, time
    seen = None
    while seen != "second":
        now = pathlib.Path(sys.argv[1]).read_text()
        if now != seen:
            print(seen := now, flush=True)
        time.sleep(0.05)
    """
    here.apply(
        config_map("moving", value="first"),
        python_pod(
            "reader", textwrap.dedent(code), "/cfg/value",
            container={"volumeMounts": [{"name": "cfg", "mountPath": "/cfg"}]},
            volumes=[{"name": "cfg", "configMap": {"name": "moving"}}],
        ),
    )  # fmt: skip
    here.until(lambda: "first" in _logs(here, "reader"), "first value")
    here.apply(config_map("moving", value="second"))
    here.pod_until("reader", lambda s: s["phase"] == "Succeeded")
    assert here.kubectl("logs", "reader") == "first\nsecond\n"


def _logs(here: Cluster, name: str, *args: str) -> str:
    try:
        return here.kubectl("logs", name, *args)
    except CommandError:
        return ""


def job(name: str, code: str, **spec: Any) -> dict[str, Any]:
    template = python_pod(name, code)["spec"]
    template["containers"][0] |= spec.pop("container", {})
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": template}} | spec,
    }  # fmt: skip


def test_job_pod_failure_policy_by_exit_code(here: Cluster) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 65]}}]
    here.apply(job("bad-data", "raise SystemExit(65)", backoffLimit=5, podFailurePolicy={"rules": rules}))

    def failed() -> dict[str, Any] | None:
        found = (here.get("job", "bad-data") or {}).get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == "Failed" and c["status"] == "True"), None)

    why = here.until(failed, "the job to fail")
    assert why["reason"] == "PodFailurePolicy"
    assert "exit code 65" in why["message"]
    pods = json.loads(here.kubectl("get", "pods", "-l", "job-name=bad-data", "-o", "json"))["items"]
    assert len(pods) == 1


def test_termination_message_from_file_and_from_logs(here: Cluster) -> None:
    write = "import sys; open(sys.argv[1], 'w').write('the report' + 'x' * 5000)"
    here.apply(
        python_pod("reports", write, "/dev/termination-log"),
        python_pod(
            "speaks", "import sys; print('oh dear'); sys.exit(3)",
            container={"terminationMessagePolicy": "FallbackToLogsOnError"},
        ),
    )  # fmt: skip
    ended = container_of(here.pod_until("reports", lambda s: s["phase"] == "Succeeded"))["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"], len(ended["message"])) == ("Completed", 0, 4096)
    ended = container_of(here.pod_until("speaks", lambda s: s["phase"] == "Failed"))["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"], ended["message"]) == ("Error", 3, "oh dear\n")


def test_memory_limit_ends_as_oom_killed(here: Cluster) -> None:
    code = "import time; hoard = bytearray(120 << 20); hoard[::4096] = b'x' * len(hoard[::4096]); time.sleep(600)"
    limits = {"resources": {"limits": {"memory": "64Mi"}}}
    within = {"resources": {"limits": {"memory": "512Mi"}}}
    here.apply(
        python_pod("greedy", code, container=limits), python_pod("modest", code.replace("600", "5"), container=within)
    )
    ended = container_of(here.pod_until("greedy", lambda s: s["phase"] == "Failed"))["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    here.until(lambda: [m for r, m in here.events("greedy") if r == "OOMKilling"], "OOMKilling event")
    assert here.pod_until("modest", lambda s: s["phase"] in ("Succeeded", "Failed"))["phase"] == "Succeeded"


def test_crash_loop_back_off(here: Cluster) -> None:
    here.apply(python_pod("crasher", "print('so long'); raise SystemExit(7)", restartPolicy="Always"))
    status = here.pod_until(
        "crasher",
        lambda s: (
            container_of(s)["restartCount"] >= 2
            and container_of(s)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        ),
    )
    assert status["phase"] == "Running"
    assert container_of(status)["lastState"]["terminated"]["exitCode"] == 7
    assert condition(status, "Ready")["reason"] == "ContainersNotReady"
    assert any(r == "BackOff" and m.startswith("Back-off restarting failed container main in pod crasher_")
               for r, m in here.events("crasher"))  # fmt: skip
    assert here.kubectl("logs", "crasher", "--previous") == "so long\n"


def test_command_that_does_not_exist(here: Cluster) -> None:
    here.apply(python_pod("typo", "", container={"command": ["no-such-program"]}))
    ended = container_of(here.pod_until("typo", lambda s: s["phase"] == "Failed"))["state"]["terminated"]
    assert ended["reason"] == "StartError"
    assert 'exec: "no-such-program": executable file not found in $PATH' in ended["message"]


def test_unknown_image_is_backed_off_and_privileged_refused(here: Cluster) -> None:
    here.apply(
        python_pod("foreign", "pass", container={"image": "docker.io/library/nginx:1"}),
        python_pod("mighty", "pass", container={"securityContext": {"privileged": True}}),
    )
    status = here.pod_until(
        "foreign", lambda s: container_of(s)["state"].get("waiting", {}).get("reason") == "ImagePullBackOff"
    )
    assert status["phase"] == "Pending"
    status = here.pod_until("mighty", lambda s: s["phase"] == "Failed")
    assert (status["reason"], "privileged" in status["message"]) == ("NotSupported", True)


SERVE = """
import http.server, os, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = not pathlib.Path(sys.argv[1]).exists()
        self.send_response(200 if good else 503)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b'served_total{cycle="own"} 7\\n')
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((sys.argv[2], 8080), Handler).serve_forever()
"""


def server_pod(name: str, **spec: Any) -> dict[str, Any]:
    """Serves on 0.0.0.0:8080 as any container would; says 503 once the file /flags/bad exists."""
    container = {
        "ports": [{"name": "http", "containerPort": 8080}],
        "volumeMounts": [{"name": "flags", "mountPath": "/flags"}],
    } | spec.pop("container", {})
    volumes = [{"name": "flags", "emptyDir": {}}]
    return python_pod(
        name, SERVE, "/flags/bad", "0.0.0.0", container=container, volumes=volumes, restartPolicy="Always", **spec
    )


def flag(here: Cluster, name: str) -> Any:
    uid = here.get("pod", name)["metadata"]["uid"]  # type: ignore[index]
    return here.platform.layout.node / "pods" / uid[:8] / "volumes" / "flags" / "bad"


def test_readiness_flips_and_two_pods_share_a_port(here: Cluster) -> None:
    probe = {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 1, "failureThreshold": 1}
    here.apply(server_pod("one", container={"readinessProbe": probe}), server_pod("two"))
    ready = here.pod_until("one", lambda s: condition(s, "Ready")["status"] == "True")
    other = here.pod_until("two", lambda s: condition(s, "Ready")["status"] == "True")
    assert ready["podIP"] != other["podIP"]
    assert ready["podIP"].startswith("127.")
    with pytest.raises(CommandError, match="exec is not supported by the process node"):
        here.kubectl("exec", "one", "--", "true")
    flag(here, "one").touch()
    here.pod_until("one", lambda s: condition(s, "Ready")["status"] == "False")
    here.until(
        lambda: ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503") in here.events("one"),
        "Unhealthy event",
    )
    flag(here, "one").unlink()
    status = here.pod_until("one", lambda s: condition(s, "Ready")["status"] == "True")
    assert container_of(status)["restartCount"] == 0


def test_liveness_failure_restarts_after_startup_passed(here: Cluster) -> None:
    http = {"httpGet": {"port": 8080}, "periodSeconds": 1}
    probes = {"startupProbe": http | {"failureThreshold": 60}, "livenessProbe": http | {"failureThreshold": 2}}
    here.apply(server_pod("shaky", container=probes))
    here.pod_until("shaky", lambda s: container_of(s).get("started"))
    flag(here, "shaky").touch()
    here.pod_until("shaky", lambda s: container_of(s)["restartCount"] >= 1)
    flag(here, "shaky").unlink(missing_ok=True)
    assert ("Killing", "Container main failed liveness probe, will be restarted") in here.events("shaky")
    here.pod_until("shaky", lambda s: condition(s, "Ready")["status"] == "True")


def test_exec_and_tcp_probes(here: Cluster) -> None:
    probes = {
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": {
            "exec": {"command": ["python", "-c", "import os; os.stat('/flags/go')"]}, "periodSeconds": 1,
        },
    }  # fmt: skip
    here.apply(server_pod("probed", container=probes))
    here.until(lambda: [m for r, m in here.events("probed") if "Readiness probe failed" in m], "unready")
    flag(here, "probed").with_name("go").touch()
    here.pod_until("probed", lambda s: condition(s, "Ready")["status"] == "True")


STUBBORN = """
import signal, sys, time
def bye(*_):
    print("asked to end", flush=True)
    if sys.argv[1] == "polite":
        sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


def test_graceful_delete_and_the_end_of_patience(here: Cluster) -> None:
    hook = {"preStop": {"exec": {"command": ["python", "-c", "open('/shared/hook', 'w').write('ran')"]}}}
    container = {"lifecycle": hook, "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    here.apply(
        python_pod(
            "polite", STUBBORN, "polite", container=container, volumes=[{"name": "shared", "emptyDir": {}}],
            metadata={"finalizers": ["ratchet.dev/test"]}, terminationGracePeriodSeconds=30,
        ),
        python_pod("stubborn", STUBBORN, "stubborn", terminationGracePeriodSeconds=3),
    )  # fmt: skip
    here.until(lambda: "ready" in _logs(here, "polite") and "ready" in _logs(here, "stubborn"), "both")
    uid = here.get("pod", "polite")["metadata"]["uid"]  # type: ignore[index]
    here.kubectl("delete", "pod", "stubborn")
    assert here.get("pod", "stubborn") is None
    here.kubectl("delete", "pod", "polite", "--wait=false")
    status = here.pod_until("polite", lambda s: s["phase"] == "Succeeded")
    assert container_of(status)["state"]["terminated"]["exitCode"] == 0
    here.kubectl("patch", "pod", "polite", "-p", '{"metadata":{"finalizers":null}}')
    folder = here.platform.layout.node / "pods" / uid[:8]
    here.until(lambda: not folder.exists(), "the pod's folder to go")
    assert ("Killing", "Stopping container main") in here.events("polite")


def test_logs_follow_tail_and_timestamps(here: Cluster) -> None:
    code = """
    import pathlib, sys, time
    print("one", flush=True)
    while not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.05)
    print("two", flush=True)
    print("three", file=sys.stderr)
    """
    here.apply(
        python_pod(
            "talker", textwrap.dedent(code), "/flags/bad",
            container={"volumeMounts": [{"name": "flags", "mountPath": "/flags"}]},
            volumes=[{"name": "flags", "emptyDir": {}}],
        )
    )  # fmt: skip
    here.until(lambda: _logs(here, "talker") == "one\n", "first line")
    environment = here.platform.env()
    with subprocess.Popen(
        ["kubectl", "-n", here.namespace, "logs", "-f", "talker"], env=environment, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        flag(here, "talker").touch()
        assert sorted(following.stdout.read().split()) == ["three", "two"]
        assert following.wait(60) == 0
    assert here.kubectl("logs", "talker", "--tail=1").count("\n") == 1
    stamped = here.kubectl("logs", "talker", "--timestamps").splitlines()[0]
    assert stamped.endswith("Z one")


def test_active_deadline(here: Cluster) -> None:
    here.apply(python_pod("late", "import time; time.sleep(600)", activeDeadlineSeconds=2))
    status = here.pod_until("late", lambda s: s["phase"] == "Failed")
    assert status["reason"] == "DeadlineExceeded"
    assert container_of(status)["state"]["terminated"]["exitCode"] == 143


def test_gpus_are_for_the_scheduler_to_count(here: Cluster) -> None:
    def gpu(count: str) -> dict[str, Any]:
        return {"resources": {"limits": {"nvidia.com/gpu": count}}}

    here.apply(python_pod("fits", "pass", container=gpu("2")), python_pod("toobig", "pass", container=gpu("3")))
    here.pod_until("fits", lambda s: s["phase"] == "Succeeded")
    status = here.pod_until("toobig", lambda s: condition(s, "PodScheduled")["status"] == "False")
    assert condition(status, "PodScheduled")["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in condition(status, "PodScheduled")["message"]


def test_restricted_namespaces_are_enforced(here: Cluster) -> None:
    here.platform.kubectl("label", "namespace", here.namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(CommandError, match='violates PodSecurity "restricted'):
        here.apply(python_pod("lax", "pass"))


def test_preempted_job_pod_is_not_counted(here: Cluster) -> None:
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    here.apply(job("patient", "import time; time.sleep(600)", podFailurePolicy={"rules": rules}))

    def running() -> str | None:
        items = json.loads(here.kubectl("get", "pods", "-l", "job-name=patient", "-o", "json"))["items"]
        names = [p["metadata"]["name"] for p in items if p["status"]["phase"] == "Running"]
        return names[0] if names else None

    first = here.until(running, "the first pod")
    here.platform.preempt(here.namespace, first)
    status = here.pod_until(first, lambda s: s["phase"] == "Failed")
    assert condition(status, "DisruptionTarget")["reason"] == "PreemptionByScheduler"
    assert container_of(status)["state"]["terminated"]["exitCode"] == 143
    second = here.until(lambda: (name := running()) != first and name, "the pod that takes its place")
    assert second != first
    assert "failed" not in here.get("job", "patient")["status"]  # type: ignore[index]


def test_a_job_that_comes_after_its_attempt_is_collected(here: Cluster) -> None:
    """As the operator owns a stage's Job: by its attempt's ConfigMap."""
    here.apply(config_map("v-train-0", stage="{}"))
    uid = (here.get("configmap", "v-train-0") or {})["metadata"]["uid"]
    late = job("v-train-0", "pass", suspend=True)
    late["metadata"]["ownerReferences"] = input_owner("v-train-0", uid)
    here.apply(late)
    assert here.get("job", "v-train-0") is not None
    here.kubectl("delete", "configmap", "v-train-0", "--wait=false")
    here.until(lambda: here.get("job", "v-train-0") is None, "the Job to go with its ConfigMap")
    here.apply(late)
    here.until(lambda: here.get("job", "v-train-0") is None, "the Job that came late to go")
