#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fake_run.sh BEHAVIOUR RUN DIGEST STEPS: stands for `conclave train` where only its exit codes, files and signals matter.
set -u
behaviour=$1 run=$2 digest=$3 steps=$4
mkdir -p "$run/checkpoints"
echo "start $(env -u OMP_NUM_THREADS nproc) ${OMP_NUM_THREADS:-none}" >>"$run/starts"
started=$(wc -l <"$run/starts")
[[ ! -e "$run/../running" ]] || echo overlap >>"$run/../overlaps"

result() { printf '{"config_digest": "%s", "step": %d}\n' "$digest" "$steps" >"$run/result.json"; }
save() { mkdir -p "$run/checkpoints/step-000000000$started"; }

case "$behaviour" in
  good) result ;;
  alone)
    touch "$run/../running"
    sleep 0.2
    rm -f "$run/../running"
    result
    ;;
  together) # ends well when another one runs beside it
    touch "$run/../beside-${run##*/}"
    for ((i = 0; i < 1000; ++i)); do
      [[ $(find "$run/.." -name 'beside-*' | wc -l) -lt 2 ]] || { result && exit 0; }
      sleep 0.02
    done
    exit 1
    ;;
  crash)
    echo 'loss is nan' >&2
    exit 81
    ;;
  silent) ;; # 0, but no result
  saving)    # three times saved and told to come back
    [[ $started -lt 4 ]] || { result && exit 0; }
    save
    exit 75
    ;;
  stuck) exit 75 ;;
  killed-once)
    [[ $started -lt 2 ]] || { result && exit 0; }
    kill -KILL $$
    ;;
  hung) exit 80 ;;
  patient) # saves when asked to; the second time it comes to its end
    [[ $started -lt 2 ]] || { result && exit 0; }
    trap 'save; exit 75' USR1
    touch "$run/ready"
    while true; do sleep 0.02; done
    ;;
esac
