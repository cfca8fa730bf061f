#!/usr/bin/env bash
# The whole method on a list of hosts, over ssh, where every host has the repository at the same path.
#
#   bash examples/hosts.sh node1 node2 node3 node4 -- --subnets 4 --workdir runs/four
#
# The processes join over the first host's port. Each trains its sub-networks without communication
# into its own workdir, which need not be shared: the trained sub-networks travel once. Process 0, on
# the first host, prints and writes the results. If a host fails, all end with exit code 6; the same
# command continues.
set -euo pipefail
hosts=()
while [[ $# -gt 0 && $1 != -- ]]; do hosts+=("$1"); shift; done
shift
printf -v flags ' %q' "$@"
port=${PORT:-29500}
started=()
for i in "${!hosts[@]}"; do
  ssh "${hosts[$i]}" "cd $(printf %q "$PWD") && exec python -m experiments.cifar10$flags \
    --coordinator ${hosts[0]}:$port --processes ${#hosts[@]} --process $i" &
  started+=($!)
done
code=0
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit "$code"
