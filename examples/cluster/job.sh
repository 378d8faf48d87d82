# shellcheck shell=bash
# Sourced by the sbatch files, which Slurm starts in the checkout that they were submitted from.
#
# Slurm warns the batch shell by USR1 before the time is up (--signal). Training is then asked by TERM to save and to end, and the
# job goes back into the queue, but only if it said that it did; whatever else fails stays failed. USR1, since TERM is also
# what a user's scancel sends. Through scancel, since srun makes a KILL of a TERM.
set -euo pipefail
# shellcheck source=examples/cluster/env.sh
. "${BAR_ENV:-examples/cluster/env.sh}"

export PYTHONPATH=$PWD # this checkout, whatever the image or the environment has installed
: "${GRACE:=240}" # seconds for a step and a save, below those of --signal
warned=
trap 'warned=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1

# launch NODES PROCESSES SCRIPT ARGUMENTS...: a torchrun on each of the first nodes, with so many processes; ends the job.
launch() {
    local nodes=$1 processes=$2 attempt=${SLURM_RESTART_COUNT:-0} hosts log step status
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    log=$OUT/slurm/$SLURM_JOB_NAME-$SLURM_JOB_ID.$attempt.log
    mkdir -p "$OUT/slurm"
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none \
        --kill-on-bad-exit=1 "${SRUN[@]}" bash examples/cluster/torchrun.sh "$GRACE" "${TORCHRUN[@]}" -- --nnodes="$nodes" --nproc-per-node="$processes" \
        --rdzv-backend=c10d --rdzv-endpoint="${hosts[0]}:$((20000 + SLURM_JOB_ID % 10000))" \
        --rdzv-id="$SLURM_JOB_ID.$attempt" --max-restarts=0 "${@:3}" >"$log" 2>&1 &
    step=$!
    # A signal ends `wait`, not what it waits for.
    while status=0; wait "$step" || status=$?; ((status == 128 + $(kill -l USR1))); do :; done
    if ((status)) && [[ -n $warned ]] && grep -qE '^(stopped: |error: terminated)' "$log"; then
        echo "the time was up: requeued; $log"
        scontrol requeue "$SLURM_JOB_ID"
    elif ((status)); then
        echo "error: status $status; $log" >&2
    fi
    exit "$status"
}

# steps NODES PROCESSES ARGUMENTS...: of the recipe.
steps() {
    launch "$1" "$2" examples/pretrain_bar.py "$RECIPE" --out "$OUT" "${@:3}" --set "${CHANGES[@]}"
}
