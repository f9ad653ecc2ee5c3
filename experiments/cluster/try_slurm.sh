#!/bin/bash
# slurm.sh on one machine: two nodes of a real SLURM over the loopback, a run that nobody disturbs, and one whose host is
# killed, whose steps get SIGTERM, and whose job is preempted (requeued); then the losses of both are compared.
#
#   apt-get install slurm-wlm munge
#   experiments/cluster/try_slurm.sh FOLDER            # as root; about 20 minutes, of which SLURM waits six
#
# Starts munged, slurmctld and two slurmd with a configuration of their own in FOLDER; they are stopped at the end.
set -euo pipefail

FOLDER=$(mkdir -p "${1:?usage: try_slurm.sh FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
HOST=$(hostname -s)
export SLURM_CONF=$FOLDER/slurm.conf PYTHONPATH=$PWD JAX_PLATFORMS=cpu

mkdir -p "$FOLDER"/{state,spool-n1,spool-n2,log}
cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool-%n
SlurmctldPidFile=$FOLDER/ctld.pid
SlurmdPidFile=$FOLDER/slurmd-%n.pid
SlurmctldLogFile=$FOLDER/log/ctld.log
SlurmdLogFile=$FOLDER/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
echo 'CgroupPlugin=cgroup/v1' > "$FOLDER/cgroup.conf" # found everywhere, and not used: linuxproc tracks the processes
grep -q ' n1 n2$' /etc/hosts || echo "127.0.0.1 $HOST n1 n2" >> /etc/hosts
pgrep munged > /dev/null || { mkdir -p /run/munge && chown munge /run/munge && su -s /bin/sh munge -c /usr/sbin/munged; }
stop() { for pid in "$FOLDER"/*.pid; do [ -f "$pid" ] && kill "$(cat "$pid")" || true; done; }
trap stop EXIT
slurmctld
slurmd -N n1
slurmd -N n2
sleep 5
sinfo

submit() {
  sbatch --parsable --nodes=2 --mem=3000 --output="$FOLDER/%x-%j.log" experiments/cluster/slurm.sh \
    experiments/faults/toy.py "$FOLDER/$1" --set steps=300 --set mesh.host_devices=2 --patience 10
}
steps() { cat "$FOLDER/$1/metrics.jsonl" 2> /dev/null | wc -l; }
wait_for() { while [ "$(steps shaken)" -lt "$1" ]; do sleep 1; done; }
wait_end() { while squeue -h -j "$1" 2> /dev/null | grep -q .; do sleep 3; done; }
say() { echo "$(date +%T) step $(steps shaken): $1"; }

rm -rf "$FOLDER"/{quiet,shaken}
job=$(submit quiet)
wait_end "$job"
job=$(submit shaken)
wait_for 60
say "SIGKILL to host 1"
kill -9 "$(pgrep -f "python.*smoljax train.*$FOLDER/shaken" | tail -1)"
sleep 20
wait_for 150
say "SIGTERM to the steps of the job"
scancel --signal=TERM "$job"
sleep 20
wait_for 220
say "requeued, as a preemption does"
scontrol requeue "$job"
sleep 20
wait_end "$job"
python - "$FOLDER" <<'PY'
import json, sys
from pathlib import Path

def losses(run):
    lines = map(json.loads, Path(sys.argv[1], run, "metrics.jsonl").open())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}

quiet, shaken = losses("quiet"), losses("shaken")
unequal = [step for step in quiet if quiet[step] != shaken.get(step)]
print(f"{len(quiet)} losses undisturbed, {len(shaken)} disturbed, {len(unequal)} unequal")
print("model:", Path(sys.argv[1], "shaken", "model", "smoljax.json").exists())
sys.exit(bool(unequal))
PY
