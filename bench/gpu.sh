#!/usr/bin/env bash
# Everything that wants a GPU, in three goes of under ten minutes each on an H200-class card: the limits of each add up to
# 570 s or less.
#
#   DATA=DIR OUT=out/gpu bench/gpu.sh              DIR holds train.jsonl and test.jsonl; without DATA, GSM8K from the Hub
#   DATA=DIR OUT=out/gpu bench/gpu.sh loss         the output layer's cross-entropy, by PyTorch's own function and by logits
#   OUT=out/gpu bench/gpu.sh siblings              JEPA-Reasoner with 42M parameters; memory of the latent stack
#
# SMALL="--n-layer 2 …" shrinks the trainings of siblings and leaves its table of memory out: how a test runs it on a CPU.
#
# Leaves runs, JSON and the output of each part under $OUT, in order of worth. Not run yet: no GPU was at hand when it was
# written.
set -uo pipefail
OUT=$(realpath -m "${OUT:-$(dirname "$0")/../out/gpu}")
data=(${DATA:+--data-dir "$(realpath "$DATA")"})
read -ra small <<<"${SMALL:-}"
cd "$(dirname "$0")/.."
mkdir -p "$OUT"

part() { # name, seconds it may take, command: a part that fails or overruns must not cost the others
  echo "== $1"
  timeout "$2" "${@:3}" >"$OUT/$1.txt" 2>&1 || echo "$1 failed: $(tail -n 1 "$OUT/$1.txt")"
}

main() {
  # the reference configuration: 25 epochs, in batches of 128
  part train 160 python train.py "${data[@]}" --batch-size 128 --lr 1.2e-3 --run "$OUT/nanojepa" --overwrite
  part alignment 30 python eval_alignment.py --run "$OUT/nanojepa"
  part accuracy 30 python evaluate_accuracy.py --run "$OUT/nanojepa"
  # peak memory of the preset for 4 GiB
  part rtx3050 40 python train.py "${data[@]}" --preset rtx3050 --max-steps 60 --no-final-eval --run "$OUT/rtx3050" --overwrite
  # speed beside the peers, the matrix-product rate, and the scaling table
  part train_speed 150 python -m bench.train_speed "${data[@]}" --batch-size 128 --steps 24 --rounds 2 \
    --scale 64 256 --out "$OUT/train_speed_cuda.json"
  part eval_speed 40 python -m bench.eval_speed --run "$OUT/nanojepa" "${data[@]}" --out "$OUT/eval_speed_cuda.json"
  # evidence: lambda at 45M parameters, five epochs, three trainings side by side
  part lambda 120 python results/studies.py lambda-45m "${data[@]}" --seeds 1 --jobs 3 --out "$OUT"
}

loss() {
  part cross_entropy 60 python -m bench.cross_entropy "${data[@]}" --batch-size 128 --out "$OUT/cross_entropy_cuda.json"
}

siblings() {
  # the 42M Reasoner on trees, 3 of the preset's 10 epochs of pretraining, and what its chains hold
  [ -n "${SMALL:-}" ] || part memory 60 python -m bench.latent_memory --out "$OUT/latent_memory_cuda.json"
  part tree42m 450 python -m reasoner.train --preset tree-42m --epochs 3 "${small[@]}" --run "$OUT/tree-42m" --overwrite
  part tree 60 python -m reasoner.evaluate --what tree --run "$OUT/tree-42m"
}

go=${1:-main}
case "$go" in
main | loss | siblings) ;;
*)
  echo "error: bench/gpu.sh $go: one of loss, siblings, or nothing" >&2
  exit 2
  ;;
esac
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$OUT/gpu.csv"
"$go"
tail -n 12 "$OUT"/*.txt
