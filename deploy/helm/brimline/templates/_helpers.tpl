{{- define "brimline.name" -}}
{{- if eq .Release.Name "brimline" }}brimline{{ else }}{{ printf "%s-brimline" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "brimline.labels" -}}
app.kubernetes.io/name: brimline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What every pod with an exporter of this release carries. */}}
{{- define "brimline.selector" -}}
brimline: exporter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "brimline.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "brimline.port" -}}
{{ regexFind "[0-9]+$" .Values.listen }}
{{- end }}

{{- define "brimline.nvml" -}}
{{ if has .Values.mode (list "sidecar-nvml" "daemonset") }}true{{ end }}
{{- end }}

{{- define "brimline.sidecar" -}}
{{ if hasPrefix "sidecar" .Values.mode }}true{{ end }}
{{- end }}

{{/* Where the sidecar takes its server's GPUs from: file or listener. */}}
{{- define "brimline.gpus" -}}
{{- if eq .Values.mode "sidecar-nvml" }}{{ .Values.server.gpus }}{{ end }}
{{- end }}

{{- define "brimline.discovery" -}}
{{ if and (eq .Values.mode "daemonset") .Values.discovery.enabled }}true{{ end }}
{{- end }}

{{/* The namespaces whose pods may be targets, as JSON; none for all. */}}
{{- define "brimline.namespaces" -}}
{{- if has "*" .Values.discovery.namespaces }}[]{{ else }}{{ .Values.discovery.namespaces | default (list .Release.Namespace) | toJson }}{{ end }}
{{- end }}

{{/* brimline.yaml: what the mode makes of the values, and `config` over it. Targets stand in a file of their own, which is
read again as it changes, and of which a mistake keeps no pod from starting. */}}
{{- define "brimline.config" -}}
{{- $config := dict }}
{{- if eq .Values.mode "sidecar" }}{{ $_ := set $config "gpu" (dict "backend" "none") }}{{ end }}
{{- if eq .Values.mode "sidecar-nvml" }}{{ $_ := set $config "gpu" (dict "devices" "targets") }}{{ end }}
{{- if include "brimline.discovery" . }}
{{- $pods := dict "node" "${NODE_NAME}" }}
{{- with include "brimline.namespaces" . | fromJsonArray }}{{ $_ := set $pods "namespaces" . }}{{ end }}
{{- with .Values.discovery.selector }}{{ $_ := set $pods "selector" . }}{{ end }}
{{- $_ := set $config "kubernetes" $pods }}
{{- end }}
{{- $config = mergeOverwrite $config (omit (deepCopy .Values.config) "targets") }}
{{- $_ := set $config "targets_files" (concat (list "targets.yaml") (.Values.config.targets_files | default list)) }}
{{- toYaml $config }}
{{- end }}

{{- define "brimline.targets" -}}
{{- $targets := list }}
{{- if hasKey .Values.config "targets" }}
{{- $targets = .Values.config.targets }}
{{- else if include "brimline.sidecar" . }}
{{- $target := dict "name" .Values.server.name "url" (printf "http://127.0.0.1:%d" (int .Values.server.port)) "launch_command" (include "brimline.words" (concat .Values.server.command .Values.server.args)) }}
{{- if eq (include "brimline.gpus" .) "file" }}{{ $_ := set $target "gpus" (dict "file" "/run/gpus/gpus.txt") }}{{ end }}
{{- if eq (include "brimline.gpus" .) "listener" }}{{ $_ := set $target "gpus" (dict "listener" true) }}{{ end }}
{{- $targets = list $target }}
{{- end }}
{{- toYaml (dict "targets" $targets) }}
{{- end }}

{{/* A command line as a shell would be given it. */}}
{{- define "brimline.words" -}}
{{- $words := list }}
{{- range . }}
{{- if regexMatch "^[A-Za-z0-9_./:=,@%+-]+$" (toString .) }}{{ $words = append $words (toString .) }}
{{- else }}{{ $words = append $words (printf "'%s'" (toString . | replace "'" "'\\''")) }}{{ end }}
{{- end }}
{{- join " " $words }}
{{- end }}

{{/* The exporter's container, the same in all modes but for what `sidecar` and NVML change. In a chart that has this one as
a dependency, the context is `.Subcharts.brimline`. */}}
{{- define "brimline.sidecar.container" -}}
name: brimline
image: {{ include "brimline.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config
  - /etc/brimline/brimline.yaml
  - --listen
  - {{ .Values.listen | quote }}
  - --log-level
  - {{ .Values.logLevel }}
  {{- if .Values.webConfig.existingSecret }}
  - --web.config.file
  - /etc/brimline-web/web.yaml
  {{- end }}
env:
  {{- if include "brimline.nvml" . }}
  - {name: NVIDIA_VISIBLE_DEVICES, value: all}
  - {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
  {{- else }}
  # Where NVIDIA's runtime is the cluster's default, this container asks it for nothing.
  - {name: NVIDIA_VISIBLE_DEVICES, value: void}
  {{- end }}
  {{- if include "brimline.discovery" . }}
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - {name: brimline, containerPort: {{ include "brimline.port" . }}}
livenessProbe:
  {{- include "brimline.probe" (dict "path" "/-/healthy" "values" .Values) | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 5
{{- if not (include "brimline.sidecar" .) }}
readinessProbe:
  {{- include "brimline.probe" (dict "path" "/-/ready" "values" .Values) | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
{{- else }}
# No readiness probe: a pod is ready when all its containers are, and a server must not lose its traffic for want of its
# monitoring.
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  {{- if eq (include "brimline.gpus" .) "listener" }}
  # The server's, or its open sockets could not be seen.
  runAsUser: {{ int64 .Values.server.securityContext.runAsUser }}
  runAsGroup: {{ int64 .Values.server.securityContext.runAsGroup }}
  {{- else if .Values.runAsUser }}
  runAsUser: {{ int64 .Values.runAsUser }}
  runAsGroup: {{ int64 .Values.runAsUser }}
  {{- end }}
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: brimline, mountPath: /etc/brimline, readOnly: true}
  {{- if .Values.webConfig.existingSecret }}
  - {name: brimline-web, mountPath: /etc/brimline-web, readOnly: true}
  {{- end }}
  {{- if eq (include "brimline.gpus" .) "file" }}
  - {name: gpus, mountPath: /run/gpus, readOnly: true}
  {{- end }}
  {{- if and (include "brimline.sidecar" .) .Values.server.models.volume }}
  - {name: models, mountPath: {{ .Values.server.models.mountPath | quote }}, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "brimline.probe" -}}
{{- if .values.webConfig.existingSecret -}}
tcpSocket: {port: brimline}
{{- else -}}
httpGet: {path: {{ .path }}, port: brimline}
{{- end }}
{{- end }}

{{/* Volumes of the pod that the exporter's container mounts; `models` is the server's. */}}
{{- define "brimline.sidecar.volumes" -}}
- name: brimline
  configMap: {name: {{ include "brimline.name" . }}}
{{- with .Values.webConfig.existingSecret }}
- name: brimline-web
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- if eq (include "brimline.gpus" .) "file" }}
- name: gpus
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What pods of all modes have in common. */}}
{{- define "brimline.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and (include "brimline.nvml" .) .Values.runtimeClassName }}
runtimeClassName: {{ .Values.runtimeClassName | quote }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "brimline.podMetadata" -}}
labels:
  {{- include "brimline.selector" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .Values.podAnnotations .Values.scrapeAnnotations (not (include "brimline.sidecar" .)) }}
annotations:
  {{- if not (include "brimline.sidecar" .) }}
  # Not of a sidecar: a new configuration must not start the server anew.
  checksum/config: {{ include "brimline.config" . | sha256sum }}
  {{- end }}
  {{- if .Values.scrapeAnnotations }}
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ include "brimline.port" . | quote }}
  prometheus.io/path: /metrics
  {{- end }}
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
