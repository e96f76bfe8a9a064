#!/usr/bin/env bash
# tools/dist_run.sh SCRIPT GPUS [arguments of SCRIPT], which dist_train.sh and dist_test.sh call
set -eu
script=$1 gpus=$2
shift 2
if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
    where=(--standalone)  # on a free port
else
    where=(--nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}"
           --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc_per_node="$gpus" \
    "$(dirname "$0")/$script" "$@"
