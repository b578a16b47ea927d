#!/bin/bash
# GRPO, SmolLM2-135M-Instruct on sums of two digits. 1 node, 2 CPU workers, no GPU.
# Written by python -m nemo_rl.launch for one submission.
#SBATCH --job-name=grpo_smollm2_cpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_smollm2_cpu.yaml
OVERRIDES=('cluster.container=/images/nemo rl.sif' grpo.seed=3)
export NEMO_RL_SITE=gh200
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-'/images/nemo rl.sif'}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_smollm2_cpu.sh}/slurm/job.sh" "$@"
