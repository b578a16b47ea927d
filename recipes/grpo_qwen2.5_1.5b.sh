#!/bin/bash
# GRPO, Qwen2.5-1.5B-Instruct on GSM8K. 1 node x 8 GPUs, dp8.
# Written by: python -m nemo_rl.launch recipes/grpo_qwen2.5_1.5b.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=grpo_qwen2.5_1.5b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_qwen2.5_1.5b.yaml
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_qwen2.5_1.5b.sh}/slurm/job.sh" "$@"
