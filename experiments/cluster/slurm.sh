#!/bin/bash
# One training run on several SLURM nodes; jax finds the hosts by SLURM's own variables.
#
#   sbatch --nodes=4 experiments/cluster/slurm.sh experiments/scenes/nano.py runs/nano-slurm --set mesh.fsdp=4
#
# The run's folder must lie on a file system that all nodes see. A job that is preempted, loses a node or meets its time
# limit is queued again and goes on from its last whole checkpoint: SLURM sends SIGTERM two minutes before the end, and
# the run saves and ends with status 0, unfinished.
#SBATCH --job-name=smoljax
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

CONFIG=${1:?"usage: sbatch slurm.sh CONFIG.py WORKDIR [--set KEY=VALUE …]"}
WORKDIR=${2:?"usage: sbatch slurm.sh CONFIG.py WORKDIR [--set KEY=VALUE …]"}
shift 2

# exec, so that the signal reaches python and not a shell before it.
status=0
srun --kill-on-bad-exit=1 bash -c 'exec smoljax train "$@"' train \
  "$CONFIG" --workdir "$WORKDIR" --coordinator auto "$@" || status=$?

# A finished run has exported its model. A lost host ends the others with status 1; RESTARTS (100) bounds how often a
# bug can come back.
if [ ! -f "$WORKDIR/model/smoljax.json" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-100}" ]; then
  echo "smoljax: status $status, unfinished; queued again (restart $((${SLURM_RESTART_COUNT:-0} + 1)))" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
