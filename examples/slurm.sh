#!/usr/bin/env bash
# The whole method on Slurm: K jobs that never communicate, then one job that joins N processes.
#
#   WORKDIR=/shared/run DATA=/shared/tfds K=4 N=4 bash examples/slurm.sh
#
# A job of the first stage that fails or is preempted runs again by itself (--requeue) and continues
# from its checkpoint; the others do not notice. If a node of the joining job fails, all of it ends
# within a minute with exit code 6, and the same command continues from the last checkpoint.
set -euo pipefail
: "${WORKDIR:?a folder that all nodes share}" "${DATA:?data that tensorflow-datasets prepared}"
K=${K:-4} N=${N:-4}
run="python -m experiments.cifar10 --preset paper --subnets $K --data-dir $DATA --workdir $WORKDIR"

# Slurm's warning before the time limit is a signal, after which the run saves and ends.
first=$(sbatch --parsable --job-name=dcjax-subnets --array="0-$((K - 1))" --requeue \
  --gpus=1 --time=12:00:00 --signal=B:USR1@120 --output="%x-%a.log" \
  --wrap="exec $run --only-subnet \$SLURM_ARRAY_TASK_ID")

# afterok: only when all K are done. srun starts N processes; JAX finds them (--distributed).
sbatch --job-name=dcjax-join --dependency="afterok:$first" --nodes="$N" --ntasks-per-node=1 \
  --gpus-per-node=1 --time=12:00:00 --output="%x.log" \
  --wrap="srun --kill-on-bad-exit=1 $run --distributed"
