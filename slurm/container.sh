#!/bin/bash
# Where the agents run: sets CONTAINER_RUNTIME, CONTAINER_SRUN (options for srun) and
# CONTAINER_COMMAND (words before the program) from the variables of the site.
#   NEMO_RL_CONTAINER_RUNTIME  none, pyxis or apptainer
#   NEMO_RL_CONTAINER          image: a .sqsh file or registry name, a .sif file
#   NEMO_RL_CONTAINER_MOUNTS   further mounts "from:to,from:to"
# The checkout, the run folder and the temporary folder are mounted at their own path.
# shellcheck disable=SC2034  # read by job.sh

CONTAINER_RUNTIME=${NEMO_RL_CONTAINER_RUNTIME:-none}
CONTAINER_SRUN=()
CONTAINER_COMMAND=()

container_mounts() {
    local folder mounts=${NEMO_RL_CONTAINER_MOUNTS:-}
    for folder in "$NEMO_RL_ROOT" "$RUN_DIR" "${NEMO_RL_TMPDIR:-/tmp}"; do
        mounts+=${mounts:+,}$folder:$folder
    done
    printf '%s\n' "$mounts"
}

# Without a slash or dot in front pyxis takes a file for a name of a registry.
container_image() {
    IMAGE=${NEMO_RL_CONTAINER:-}
    case $IMAGE in
        '')
            say "site ${NEMO_RL_SITE:-generic} uses $CONTAINER_RUNTIME, but the image is not set (cluster.container)"
            exit 2
            ;;
        /*) ;;
        ./* | ../* | *.sqsh | *.squashfs | *.sif) IMAGE=$NEMO_RL_ROOT/$IMAGE ;;
    esac
}

case $CONTAINER_RUNTIME in
    none) ;;
    pyxis)
        container_image
        CONTAINER_SRUN=(
            "--container-image=$IMAGE"
            "--container-mounts=$(container_mounts)"
            "--container-workdir=$NEMO_RL_ROOT"
            --no-container-mount-home
        )
        ;;
    apptainer)
        container_image
        CONTAINER_COMMAND=(apptainer exec --bind "$(container_mounts)" --pwd "$NEMO_RL_ROOT")
        [ "${SLURM_GPUS_ON_NODE:-0}" -eq 0 ] || CONTAINER_COMMAND+=(--nv)
        CONTAINER_COMMAND+=("$IMAGE")
        ;;
    *)
        say "NEMO_RL_CONTAINER_RUNTIME=$CONTAINER_RUNTIME is none of: none, pyxis, apptainer"
        exit 2
        ;;
esac
