#!/bin/bash
# GRPO, SmolLM2-135M-Instruct, data and reward of one's own. 1 node, 2 CPU workers.
# Written by: python -m nemo_rl.launch recipes/grpo_custom_reward.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=grpo_custom_reward
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_custom_reward.yaml
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_custom_reward.sh}/slurm/job.sh" "$@"
