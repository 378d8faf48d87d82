#!/bin/bash
# torchrun.sh SECONDS TORCHRUN... -- ARGUMENTS...: starts torchrun, on a node, so that its processes have SECONDS to save after a
# SIGTERM. Asks it first whether it can say so: --shutdown-timeout came with torch 2.12.
set -u
seconds=$1 torchrun=()
shift
while [[ $1 != -- ]]; do
    torchrun+=("$1")
    shift
done
shift
if [[ $("${torchrun[@]}" --help 2>/dev/null) == *--shutdown-timeout* ]]; then
    torchrun+=(--shutdown-timeout="$seconds")
else
    echo "warning: torchrun has no --shutdown-timeout (torch >= 2.12): a step and a save must take less than its 30 s" >&2
fi
exec "${torchrun[@]}" "$@"
