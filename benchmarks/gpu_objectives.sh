#!/usr/bin/env bash
# Replaced-token detection against masked-language modelling on one GPU: two minutes of training each, then CoLA, SST-2,
# STS-B and RTE. One seed: it shows that both work on a GPU and how fast they are, not which is better. GLUE is a folder
# as docs/reference/evaluation.md describes it.
#
#   BUDGET=2m benchmarks/gpu_objectives.sh GLUE OUTPUT [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
glue=${1:?folder of the GLUE tasks} output=${2:?folder for the runs}
shift 2

recipes=crammed-bert,no-first-norm,bf16-residual,rope,muon
for objective in mlm rtd; do
    composer train.py yamls/cram-gpu.yaml "recipes=[$recipes$([ $objective = mlm ] || echo ",$objective")]" \
        budget="${BUDGET:-2m}" eval.interval=0 run_name="$objective" runs_dir="$output" "$@"
done
cram compare "$output/mlm" "$output/rtd" || true # losses of two objectives: it says so
cram eval "$output/mlm" "$output/rtd" --suite glue-compact --data "$glue" --output "$output/eval" \
    --tasks cola,sst2,stsb,rte --set seeds=1
