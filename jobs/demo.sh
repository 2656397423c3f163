#!/bin/sh
# The whole workflow on real images, on one machine: `make demo`. The same commands run on a cluster.
set -eu
store=${STORE:-./store/demo}
model=${OUT:-./pulled/demo}
limit=150k
step() { printf '\n\033[1m%s\033[0m\n$ %s\n' "$1" "$2"; eval "$2"; }

export OMP_NUM_THREADS=1
step "1. An ancestry model: a small vision transformer on the 1,797 scanned digits" \
    "learngene ancestry --config jobs/recipes/digits-ancestry.yaml --store $store"
step "2. Its learngene: distilled by Ray Train and DeepSpeed on 2 workers" \
    "learngene distill --config jobs/recipes/digits-distill.yaml --store $store"
step "3. The plan: which size meets which budget" \
    "learngene plan --config jobs/recipes/digits-sweep.yaml --store $store"
step "4. Descendants for four budgets, from the learngene and from scratch, by Ray Tune" \
    "learngene sweep --config jobs/recipes/digits-sweep.yaml --store $store"
step "5. The most accurate descendant under $limit parameters" \
    "learngene pull --store $store --max-params $limit --out $model --overwrite"
step "6. The pulled folder in plain timm, measured again" \
    "learngene evaluate $model --data digits"
step "7. An ONNX file and an int8 file of it, compared on the validation images by onnxruntime" \
    "learngene export $model --format onnx,int8 --data digits --out $model-export --overwrite"
step "8. The page to choose a model by: every sweep of the store in one HTML file" \
    "learngene page --store $store --out $model-page.html"
