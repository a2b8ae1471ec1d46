#!/bin/bash
# scp FILE HOST:PATH between the hosts of the test: HOSTS has the process that holds each.
set -euo pipefail
to=${2%%:*}
nsenter -t "$(cat "$HOSTS/$to")" -m -- tee "${2#*:}" <"$1" >/dev/null
