#!/usr/bin/env bash
# Half an hour on a GPU: every step in the order of its worth, with its log in results/.
# `run.sh --dry-run` runs the steps in short on a CPU. PYTHON is the Python to use.
set -uo pipefail
cd "$(dirname "$0")/project" || exit 1
results=$PWD/../results data=$PWD/../images weights=$PWD/../weights
python=${PYTHON:-python3} dry=
[[ ${1:-} == --dry-run ]] && dry=yes
mkdir -p "$results"

if ! "$python" -c 'import ray, torch, optuna' 2> /dev/null; then
  "$python" -m venv ../venv && python=$PWD/../venv/bin/python
  links=()
  compgen -G '../wheels/*.whl' > /dev/null && links=(--find-links ../wheels)
  "$python" -m pip install --quiet "${links[@]}" --constraint constraints.txt --editable '.[dev,export,serve]'
fi

# step NAME SECONDS COMMAND…: after one that fails or takes too long the next ones still run.
step() {
  local name=$1 seconds=$2 began=$SECONDS
  shift 2
  timeout --kill-after 20 "$seconds" "$@" > "$results/$name.log" 2>&1
  printf '%-20s exit code %3d  %4d s\n' "$name" "$?" "$((SECONDS - began))" | tee -a "$results/steps.txt"
}
# searching NAME SECONDS SPACE FOLDER OPTIONS…: a search of images that the archive has.
searching() {
  local name=$1 seconds=$2 space=$3 folder=$4
  shift 4
  [[ -d $data/$folder ]] || return 0
  step "$name" "$seconds" "$python" -m search.run --space "spaces/$space.py" --data "$data/$folder" \
    --weights "$weights" --backbones "$backbones" --out "$results" --name "$name" "$@"
}
backbones=$(find "$weights" -type f -printf '%f\n' | sed 's/\.[^.]*$//' | sort | paste --serial --delimiters ,)
short=(--quick) search=(--trials 24)
if [[ -n $dry ]]; then
  export CUDA_VISIBLE_DEVICES=
  short=(--smoke --device cpu) search=(--trials 1 --epochs 1 --folds 2 --limit 300)
else
  step machine 60 nvidia-smi
fi

step versions 60 "$python" -m torch.utils.collect_env
step gpu_tests 300 "$python" -m pytest -m gpu -rs tests
step gpu_sharing 420 "$python" -m benchmarks.speed.gpu_sharing "${short[@]}" \
  --out "$results/gpu_sharing.json"
searching caltech_gpu 240 caltech caltech101 "${search[@]}"
searching grocery_gpu 240 photos grocery "${search[@]}"
if [[ -z $dry ]]; then # the same search on the CPUs of the same machine
  export CUDA_VISIBLE_DEVICES=
  searching caltech_cpu 420 caltech caltech101 "${search[@]}"
fi
tar czf ../results.tgz -C .. --exclude '*.pt' results
echo "bring home: $(cd .. && pwd)/results.tgz"
