#!/bin/bash
# Builds the image: build.sh [docker|enroot|apptainer]
#   docker     nemo_rl:latest in the local Docker daemon
#   enroot     that, and nemo_rl.sqsh in the checkout (for pyxis)
#   apptainer  that, and nemo_rl.sif in the checkout
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind=${1:-docker}
case $kind in
    docker | enroot | apptainer) ;;
    *) echo "usage: containers/build.sh [docker|enroot|apptainer]" >&2; exit 2 ;;
esac

arguments=()
while IFS= read -r line; do
    [[ $line =~ ^[A-Z_]+= ]] && arguments+=(--build-arg "$line")
done < containers/versions.env

docker build "${arguments[@]}" --file containers/Dockerfile --tag nemo_rl:latest .

case $kind in
    enroot) enroot import --output nemo_rl.sqsh dockerd://nemo_rl:latest ;;
    apptainer) apptainer build nemo_rl.sif containers/nemo_rl.def ;;
esac
