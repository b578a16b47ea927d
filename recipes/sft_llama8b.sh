#!/bin/bash
# SFT, Llama-3.1-8B on the Tulu 3 mixture. 1 node x 8 GPUs, tp2 dp4.
# Written by: python -m nemo_rl.launch recipes/sft_llama8b.yaml --write
# (edit the .yaml, then run it again)
#SBATCH --job-name=sft_llama8b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
RECIPE=recipes/sft_llama8b.yaml
export NEMO_RL_CONTAINER=${NEMO_RL_CONTAINER:-nemo_rl.sqsh}
source "${SLURM_SUBMIT_DIR:?submit from the checkout: sbatch recipes/sft_llama8b.sh}/slurm/job.sh" "$@"
