#!/bin/bash
# GRPO, Qwen3-30B-A3B (128 experts) on DeepScaleR. 4 nodes x 8 GPUs, pp4 ep8.
# Written by: python -m nemo_rl.launch recipes/grpo_qwen3_30b_a3b.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=grpo_qwen3_30b_a3b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_qwen3_30b_a3b.yaml
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_qwen3_30b_a3b.sh}/slurm/job.sh" "$@"
