#!/usr/bin/env bash
# tools/slurm_run.sh SCRIPT PARTITION JOB_NAME [arguments of SCRIPT], which slurm_train.sh and slurm_test.sh call
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS in the environment say how much to ask for.
set -eu
script=$1 partition=$2 job=$3
shift 3
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$per_node" ]; then
    per_node=$gpus
fi
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/$script" "$@" --launcher slurm
