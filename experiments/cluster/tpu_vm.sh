#!/bin/bash
# One training run on a Cloud TPU slice, all hosts of it, by gcloud alone.
#
#   NAME=smol ZONE=us-west4-a TYPE=v5litepod-256 BUCKET=mine \
#     experiments/cluster/tpu_vm.sh experiments/plan/smolvlm.py smol-2.2b --set size=2.2b --set mesh.fsdp=128
#
# Asks for the slice if it is not there, installs this repository's current commit on every host, mounts the bucket
# (gcsfuse; one with a hierarchical namespace, so that folders are renamed at once), and starts the run; after a
# preemption or a lost host it asks again and goes on, from the last whole checkpoint. DRY=1 prints the commands and runs
# none.
set -euo pipefail

: "${NAME:?the slice}" "${ZONE:?its zone}" "${TYPE:?its type, v5litepod-256}" "${BUCKET:?where the run is kept}"
VERSION=${VERSION:-tpu-ubuntu2204-base}
REPOSITORY=${REPOSITORY:-$(git remote get-url origin)}
COMMIT=${COMMIT:-$(git rev-parse HEAD)}
CONFIG=${1:?"usage: tpu_vm.sh CONFIG.py RUN [--set KEY=VALUE …]"}
RUN=${2:?"usage: tpu_vm.sh CONFIG.py RUN [--set KEY=VALUE …]"}
shift 2

tpu() { ${DRY:+echo} gcloud compute tpus tpu-vm "$@" --zone "$ZONE"; }
everywhere() { tpu ssh "$NAME" --worker=all --command "$1"; }

state() {
  [ -n "${DRY:-}" ] && { echo MISSING; return; }
  gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" --format='value(state)' 2>/dev/null || echo MISSING
}

create() { tpu create "$NAME" --accelerator-type "$TYPE" --version "$VERSION"; }
again() {
  echo "attempt $attempt: $1; asking again in a minute" >&2
  sleep 60
}

for attempt in $(seq "${ATTEMPTS:-20}"); do
  case "$(state)" in
    READY) ;;
    PREEMPTED | TERMINATED) { tpu delete "$NAME" --quiet && create; } || { again "no slice"; continue; } ;;
    MISSING) create || { again "no slice"; continue; } ;;
    *) again "the slice is not ready"; continue ;;
  esac
  everywhere "set -e; test -d smoljax || git clone -q '$REPOSITORY' smoljax; cd smoljax; git fetch -q; \
    git checkout -q '$COMMIT'; python3 -m pip install -q uv; test -d .venv || python3 -m uv venv -q --python 3.11; \
    python3 -m uv pip install -q -e '.[data,tpu]'; \
    mkdir -p ~/bucket; mountpoint -q ~/bucket || gcsfuse --implicit-dirs '$BUCKET' ~/bucket" ||
    { again "the hosts could not be set up"; continue; }
  # On a slice jax finds its hosts by itself. A run that a signal stopped ends with status 0, but without its model.
  if everywhere "cd smoljax; .venv/bin/smoljax train '$CONFIG' --workdir ~/bucket/'$RUN' --coordinator auto $* && \
    test -f ~/bucket/'$RUN'/model/smoljax.json"; then
    echo "finished: gs://$BUCKET/$RUN/model"
    exit 0
  fi
  again "the run ended; it goes on from its last whole checkpoint"
done
exit 1
