#!/bin/bash
# GRPO, Llama-3.1-70B-Instruct on OpenMathInstruct-2. 8 nodes x 8 GPUs, tp8 pp4.
# Written by: python -m nemo_rl.launch recipes/grpo_llama70b.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=grpo_llama70b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/grpo_llama70b.yaml
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/grpo_llama70b.sh}/slurm/job.sh" "$@"
