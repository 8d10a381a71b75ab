{{/* What the operator does in a namespace that it serves, and nothing more. */}}
{{- define "ratchet.operatorRules" -}}
# People's objects are read, and only their status is written. A run makes versions.
- apiGroups: [ratchet.dev]
  resources: [improvementcycles]
  verbs: [get, list, watch]
- apiGroups: [ratchet.dev]
  resources: [modelversions]
  verbs: [get, list, watch, create]
- apiGroups: [ratchet.dev]
  resources: [improvementcycles/status, modelversions/status]
  verbs: [update, patch]
# A stage is a Job and the ConfigMap with its input.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
{{- if .Values.launchers.trainJob.enabled }}
# With training.launcher TrainJob: Kubeflow Trainer removes none that has ended.
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, create, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainingruntimes]
  verbs: [get]
{{- end }}
# An arm is a Deployment, and a budget when it has several pods. Both are applied, which takes create and patch.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# With serving.router httpRoute or replicas: Services over the arms, whose endpoints are looked at, and the weights of a
# route that is somebody else's.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, patch]
# An arm that somebody else scales is left to it.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch]
# By name, never as a list: whether the Secret that a spec names exists (its metadata is asked for), and the content of
# those that promotion.git, notifications and tracking name: for pull requests, receivers' addresses and signatures, logins.
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
