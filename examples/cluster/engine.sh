#!/bin/bash
# The engine.python of rlvr.sbatch: the engine's Python on a node of its own, its requests and answers through srun's pipes.
set -euo pipefail
# shellcheck source=examples/cluster/env.sh
. "${BAR_ENV:-examples/cluster/env.sh}"
exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$BAR_ENGINE_NODE" --gpus-per-node="$GPUS" \
    --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none --unbuffered "$ENGINE_PYTHON" "$@"
