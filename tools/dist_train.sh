#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [options of train.py]
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=host PORT=29500 tools/dist_train.sh ...
set -eu
exec bash "$(dirname "$0")/dist_run.sh" train.py "$2" "$1" --launcher pytorch "${@:3}"
