"""ModelVersions that a cycle makes: the root, and one per run.

Room: operator, manifests. Pure. Their spec is immutable, so they are created, never applied.
"""

from ratchet_api.cycle import ImprovementCycle
from ratchet_api.data import DatasetRef
from ratchet_api.names import CYCLE_KIND, GROUP_VERSION, VERSION_KIND, version_name
from ratchet_api.version import ModelVersionSpec
from ratchet_operator.manifests import pods
from ratchet_operator.manifests.pods import JSON


def root_name(cycle: str) -> str:
    """The bare base model's version."""
    return version_name(cycle, 0)


def root(cycle: ImprovementCycle) -> JSON:
    """The bare base model."""
    name = cycle.metadata.name
    return _version(cycle, root_name(name), ModelVersionSpec(cycle=name, run=0, base_model=cycle.spec.base_model))


def of_run(cycle: ImprovementCycle, name: str, run: int, dataset: DatasetRef, parent: str | None) -> JSON:
    """The recipe that a run curated its dataset for."""
    spec = ModelVersionSpec(
        cycle=cycle.metadata.name,
        run=run,
        parent=parent,
        base_model=cycle.spec.base_model,
        dataset=dataset,
        training=cycle.spec.training.recipe,
        evaluation=cycle.spec.evaluation.policy(),
    )
    return _version(cycle, name, spec)


def _version(cycle: ImprovementCycle, name: str, spec: ModelVersionSpec) -> JSON:
    meta = cycle.metadata
    return {
        "apiVersion": GROUP_VERSION,
        "kind": VERSION_KIND,
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": pods.labels(meta.name, run=str(spec.run)),
            "ownerReferences": pods.owner(CYCLE_KIND, meta.name, meta.uid),
        },
        "spec": spec.dump(),
    }
