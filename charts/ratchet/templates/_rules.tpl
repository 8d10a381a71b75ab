{{/* What the operator does in a namespace that it serves, and nothing more. */}}
{{- define "ratchet.operatorRules" -}}
# People's objects: read; only their status is written. Versions are also made, by a run.
- apiGroups: [ratchet.dev]
  resources: [improvementcycles]
  verbs: [get, list, watch]
- apiGroups: [ratchet.dev]
  resources: [modelversions]
  verbs: [get, list, watch, create, patch]
- apiGroups: [ratchet.dev]
  resources: [improvementcycles/status, modelversions/status]
  verbs: [get, update, patch]
# Clusters that enforce it let only those own (blockOwnerDeletion) who may set the owner's finalizers.
- apiGroups: [ratchet.dev]
  resources: [improvementcycles/finalizers, modelversions/finalizers]
  verbs: [update]
# Stages and arms.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Only whether the Secret that a spec names exists: by name, never as a list.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* The gateway reads where to send sessions, and nothing else. */}}
{{- define "ratchet.gatewayRules" -}}
- apiGroups: [ratchet.dev]
  resources: [improvementcycles]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- end -}}
