#!/bin/bash
# Submits a whole run, each job behind those that it needs: branch, the experts side by side, merge, route. Run again, it goes on:
# jobs whose folders are there end at once.
#   BAR_ENV=my.sh examples/cluster/submit.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=examples/cluster/env.sh
. "${BAR_ENV:-examples/cluster/env.sh}"

for path in "$BASE" "$ANCHOR" "$DATA"; do
    [[ -e $path ]] || { echo "error: $path: not found; see ${BAR_ENV:-examples/cluster/env.sh}" >&2; exit 1; }
done
mkdir -p "$OUT/slurm"
# A mistake in the changes is told here, not after a day in the queue.
"${PYTHON[@]}" examples/pretrain_bar.py "$RECIPE" --out "$OUT" --dry-run --set "${CHANGES[@]}" "${RLVR[@]}" >"$OUT/slurm/plan.txt"

# submit NAME AFTER FILE ARGUMENTS...: prints the job's number. AFTER: jobs that must have succeeded, with colons between.
submit() {
    local name=$1 after=() number
    [[ -z $2 ]] || after=(--dependency="afterok:$2" --kill-on-invalid-dep=yes)
    number=$(sbatch --parsable --job-name="$name" --output="$OUT/slurm/%x-%j.out" "${after[@]}" "${SBATCH[@]}" \
        "examples/cluster/$3" "${@:4}")
    echo "${number%%;*} $name${2:+ after $2}" >&2
    echo "${number%%;*}"
}

branch=$(submit branch "" one.sbatch branch)
ends=
for chain in "${CHAINS[@]}"; do
    read -ra words <<<"$chain"
    last=$branch
    for stage in "${words[@]:1}"; do
        last=$(submit "${words[0]}-$stage" "$last" "$stage.sbatch" "${words[0]}")
    done
    ends+=${ends:+:}$last
done
last=$(submit merge "$ends" one.sbatch merge)
last=$(submit route "$last" route.sbatch)
for stage in "${AFTER[@]}"; do
    last=$(submit "$stage" "$last" one.sbatch "$stage")
done
