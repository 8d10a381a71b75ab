{{/* Name of the release's objects: "ratchet" for a release called ratchet, else "<release>-ratchet". */}}
{{- define "ratchet.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a component. The operator finds gateways by the first two (ratchet_api.names).
     Takes a dict of root and component. */}}
{{- define "ratchet.selectorLabels" -}}
app.kubernetes.io/name: ratchet
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "ratchet.labels" -}}
{{ include "ratchet.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* repository@digest, or repository:tag with the chart's appVersion as the default tag.
     Takes a dict of root and image (a key of .Values.images). */}}
{{- define "ratchet.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "ratchet.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "ratchet.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "ratchet.prometheusUrl" -}}
{{- if not .Values.prometheus.url -}}
{{- fail "prometheus.url is empty: write the base address of the Prometheus that scrapes the gateway's pods, for example --set prometheus.url=http://prometheus-server.monitoring.svc:80 (without it no rollout could ever be judged)" -}}
{{- end -}}
{{- .Values.prometheus.url -}}
{{- end -}}

{{/* The restricted Pod Security Standard, of a pod and of a container. */}}
{{- define "ratchet.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.security.runAsUser }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
{{- end }}
{{- with .Values.security.fsGroup }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ratchet.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Placement of a component's pods. Takes its block of the values. */}}
{{- define "ratchet.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Annotations of a component's pods. Takes a dict of root, component and port. */}}
{{- define "ratchet.podAnnotations" -}}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- with (index .root.Values .component).podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ratchet.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Three quarters of gateway.spool.size, in MiB. */}}
{{- define "ratchet.spoolLimit" -}}
{{- $size := .Values.gateway.spool.size -}}
{{- $unit := substr (int (sub (len $size) 2)) (len $size) $size -}}
{{- $mebibytes := mul (trimSuffix $unit $size | int) (index (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) $unit) -}}
{{- if lt $mebibytes 64 -}}
{{- fail (printf "gateway.spool.size: %s is too small; write 64Mi or more" $size) -}}
{{- end -}}
{{- div (mul $mebibytes 3) 4 -}}
{{- end -}}
