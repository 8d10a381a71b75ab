"""Which defects the simulator finds: each is written into a copy of the operator, which then meets seed after seed.

`make mutations`, or `mutations.py --only NAME --seeds 200`. Prints a Markdown table, as in docs/crash-safety.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "operator/src/ratchet_operator/"


@dataclass(frozen=True)
class Mutation:
    """One defect: `old`, which stands exactly once in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "a cycle's status is written without its resource version", "clients/kube.py",
        '"metadata": {"name": meta.name, "namespace": meta.namespace, "resourceVersion": meta.resource_version},\n'
        '            "status": status,',
        '"metadata": {"name": meta.name, "namespace": meta.namespace},\n            "status": status,',
    ),
    Mutation(
        "an object that exists already is an error", "clients/kube.py",
        "        except AlreadyExists:\n            if owner is not None:",
        "        except AlreadyExists:\n            raise\n            if owner is not None:",
    ),
    Mutation(
        "an object of an earlier owner is taken for ours", "clients/kube.py",
        "if not meta.owned_by(owner):", "if False:",
    ),
    Mutation(
        "an object that vanished is a bug", "clients/kube.py",
        '            raise Conflict(f"{error}: deleted since it was read") from error', "            raise",
    ),
    Mutation(
        "a Job of another owner is looked at as ours", "reconcile/jobs.py",
        "if found is None or not found.metadata.owned_by(input_uid):", "if found is None:",
    ),
    Mutation(
        "the name of a Job is not its attempt's", "manifests/stages.py",
        "return child_name(who.version, ", "return __import__('uuid').uuid4().hex[:6] + child_name(who.version, ",
    ),
    Mutation(
        "a Job is made before its name is written", "reconcile/version.py",
        "        self.store(stages.planned(entry, name, prepared.name, str(prepared.input_uid), launcher))\n",
        "        await launchers.create(self.ctx.kube, prepared)\n"
        "        self.store(stages.planned(entry, name, prepared.name, str(prepared.input_uid), launcher))\n",
    ),
    Mutation(
        "a planned Job that is not there is not made", "reconcile/version.py",
        "                self.request = replace(request, input_uid=entry.input_uid)",
        "                pass",
    ),
    Mutation(
        "a Job that was deleted is not noticed", "domain/stages.py",
        "        if status.job_uid is None:\n            return StageMove(status, stalled=_stalled(status))\n",
        "        if True:\n            return StageMove(status, stalled=_stalled(status))\n",
    ),
    Mutation(
        "the input of a Job that was deleted stays", "reconcile/launchers.py",
        "        await kube.delete(ConfigMap, namespace, status.job, status.input_uid)", "        pass",
    ),
    Mutation(
        "a Job in the place of a deleted one is taken for it", "reconcile/launchers.py",
        "if status.job_uid is None or (seen is not None and seen.uid == status.job_uid):", "if True:",
    ),
    Mutation(
        "the status is written after acting", "reconcile/cycle.py",
        "        await self._write()\n", "        await self._converge()\n        await self._write()\n",
    ),
    Mutation(
        "arms come and go before the status is written", "reconcile/cycle.py",
        "        await self._write()\n",
        "        await self.hosting.clear(self.cycle, self.now)\n        await self._write()\n",
    ),
    Mutation(
        "retired arms go at once", "reconcile/hosting.py",
        " - served - lingering(cycle, now)", " - served",
    ),
    Mutation(
        "stable's arm is not kept", "reconcile/cycle.py",
        "        return [serving.stable] if serving.candidate is None else [serving.stable, serving.candidate]",
        "        return [serving.stable] if serving.candidate is None else [serving.candidate]",
    ),
    Mutation(
        "a rollout begins while the last one's outcome is unknown to its version", "reconcile/rollout.py",
        "or not versions.acknowledged(found, status)", "",
    ),
    Mutation(
        "weight rises without a ready arm", "domain/rollout.py",
        "    if seen.candidate.proven and not seen.suspended and status.measured_at is not None:",
        "    if not seen.suspended and status.measured_at is not None:",
    ),
    Mutation(
        "a rollback is over before the gateways say so", "domain/rollout.py",
        "    if seen.observed_weight != 0:\n", "    if False:\n",
    ),
    Mutation(
        "rejected digests are not remembered", "domain/ledger.py",
        "    if rollout.digest:\n        status = _rejected(", "    if False:\n        status = _rejected(",
    ),
    Mutation(
        "an ended rollout is settled again and again", "domain/ledger.py",
        "or rollout.decision is None or rollout.settled:", "or rollout.decision is None:",
    ),
    Mutation(
        "a run begins while another one goes on", "domain/run.py",
        "    if spec.suspend or active(last):\n", "    if spec.suspend:\n",
    ),
    Mutation(
        "the request of a run is forgotten", "domain/run.py",
        "request=request if asked else taken", 'request=""',
    ),
    Mutation(
        "a proof against a replaced champion is written as undecided", "reconcile/version.py",
        "        self.events.append((not decision.accepted, decision.reason, decision.message))\n"
        "        self._repeat_if_outdated(cycle)\n",
        "        self.events.append((not decision.accepted, decision.reason, decision.message))\n",
    ),
    Mutation(
        "champions that came and went leave no trace", "domain/versions.py",
        "for good in known)", "for good in ())",
    ),
    Mutation(
        "events are posted once at best", "reconcile/announcing.py",
        "        recent = [word for word in recent if word.at == latest]", "        recent = []",
    ),
    Mutation(
        "a failed event is forgotten", "reconcile/announcing.py",
        "frozenset(word for word in words if word not in failed)", "frozenset(words)",
    ),
    Mutation(
        "a report is looked for in a list older than its Job", "reconcile/jobs.py",
        "        if whole is None and any(map(_goes_on, pods)):", "        if False:",
    ),
    Mutation(
        "a key that fails is not tried again", "application.py",
        'log.warning("%s: tried again in %.1f s: %s", where, self.queue.add_backoff(key), error)', "pass",
    ),
    Mutation(
        "a key that is added while it is worked on is lost", "queue.py",
        "        if key in self._waiting:\n            self._ready.put_nowait(key)\n",
        "        self._waiting.discard(key)\n",
    ),
    Mutation(
        "an operator at rest never looks again", "reconcile/cycle.py",
        "[ctx.settings.pace.resync]", "[]",
    ),
    Mutation(
        "the leader's writes are not guarded", "clients/kube.py",
        "        self._may_write()\n", "",
    ),
)  # fmt: skip


def caught(mutation: Mutation, seeds: int) -> str:
    """After how many seeds it was found, and by what."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("api/src", "operator/src", "tests/chaos", "tests/operator_room"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / OPERATOR / mutation.file
        text = file.read_text()
        if text.count(mutation.old) < 1:
            return "the code has changed: this mutation has nothing to stand on"
        file.write_text(text.replace(mutation.old, mutation.new, 1))
        path = os.pathsep.join(str(copy / part) for part in ("api/src", "operator/src"))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
        command = [sys.executable, str(copy / "tests/chaos/chaos.py"), "--seeds", str(seeds), "--stop", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return f"not caught in {seeds} seeds"
    if not lines:
        return f"the simulator broke: {done.stderr.strip().splitlines()[-1:]}"
    number = lines[-1].split()[0]
    why = re.sub(r"^ *[0-9.]+  ", "", lines[1]).strip()
    return f"after {number} {'seed' if number == '1' else 'seeds'}: {why[:110]}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many each one has to survive (default: 300)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at the same time (default: 1)")
    parser.add_argument("--only", default="", help="only those whose name contains this")
    arguments = parser.parse_args()
    print("| defect | in | caught |\n|---|---|---|", flush=True)
    chosen = [mutation for mutation in MUTATIONS if arguments.only in mutation.name]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutation, found in zip(chosen, pool.map(lambda one: caught(one, arguments.seeds), chosen), strict=True):
            print(f"| {mutation.name} | `{mutation.file}` | {found.replace('|', '/')} |", flush=True)


if __name__ == "__main__":
    main()
