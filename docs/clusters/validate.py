"""Compares mpijob.yaml with the schemas of what it is made of.

    pip install kubernetes-validate && python3 docs/clusters/validate.py

Pods are validated by Kubernetes' own schema, strictly: an unknown field is an error. The fields around them are those of
kubeflow.org/v2beta1 MPIJob (manifests/base/kubeflow.org_mpijobs.yaml of mpi-operator, commit 013fa15b22a6).
"""

import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

INTEGER = {"type": "integer"}


def strict(properties, required=()):
    """An object of these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


REPLICA = strict({"replicas": INTEGER, "restartPolicy": {"type": "string"}, "template": {"type": "object"}}, ["template"])
POLICY = strict(
    {
        "activeDeadlineSeconds": INTEGER,
        "backoffLimit": INTEGER,
        "cleanPodPolicy": {"enum": ["None", "Running", "All"]},
        "suspend": {"type": "boolean"},
        "ttlSecondsAfterFinished": INTEGER,
    }
)
SPEC = strict(
    {
        "mpiImplementation": {"enum": ["OpenMPI", "Intel", "MPICH"]},
        "mpiReplicaSpecs": strict({"Launcher": REPLICA, "Worker": REPLICA}, ["Launcher"]),
        "runPolicy": POLICY,
        "slotsPerWorker": INTEGER,
        "sshAuthMountPath": {"type": "string"},
    },
    ["mpiReplicaSpecs"],
)
JOB = strict(
    {
        "apiVersion": {"const": "kubeflow.org/v2beta1"},
        "kind": {"const": "MPIJob"},
        "metadata": {"type": "object"},
        "spec": SPEC,
    },
    ["apiVersion", "kind", "metadata", "spec"],
)


def main():
    """Returns nothing; an error names the field."""
    job = yaml.safe_load((pathlib.Path(__file__).parent / "mpijob.yaml").read_text())
    jsonschema.validate(job, JOB)
    version = kubernetes_validate.latest_version()
    for name, replica in job["spec"]["mpiReplicaSpecs"].items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}, **replica["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
    print(f"mpijob.yaml fits kubeflow.org/v2beta1 and Kubernetes {version}")


if __name__ == "__main__":
    sys.exit(main())
