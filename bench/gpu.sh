#!/usr/bin/env bash
# Everything that wants a GPU, in one go, under ten minutes on an H200-class card.
#
#   DATA=DIR OUT=out/gpu bench/gpu.sh        DIR holds train.jsonl and test.jsonl; without DATA, GSM8K from the Hub
#
# Leaves JSON and curves under $OUT. Not run yet: no GPU was at hand when it was written.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
data=(${DATA:+--data-dir "$DATA"})
mkdir -p "$OUT"

part() { # name, seconds it may take, command: a part that fails or overruns must not cost the others
  echo "== $1"
  timeout "$2" "${@:3}" >"$OUT/$1.txt" 2>&1 || echo "$1 failed: $(tail -1 "$OUT/$1.txt")"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$OUT/gpu.csv"
# the founding configuration: 25 epochs, batches of 128 (the rate grows with the square root of the batch)
part train 200 python train.py "${data[@]}" --batch-size 128 --lr 1.2e-3 --run out/nanojepa --overwrite
part alignment 60 python eval_alignment.py --run out/nanojepa
part accuracy 60 python evaluate_accuracy.py --run out/nanojepa
# peak memory of the preset for 4 GiB
part rtx3050 60 python train.py "${data[@]}" --preset rtx3050 --max-steps 60 --no-final-eval --overwrite
# speed against the peers, the matrix-product rate, and the scaling table; eager, then compiled
part train_speed 120 python -m bench.train_speed "${data[@]}" --batch-size 128 --steps 8 --rounds 3 \
  --scale 32 64 128 256 512 --out "$OUT/train_speed_cuda.json"
part train_speed_compiled 120 python -m bench.train_speed "${data[@]}" --batch-size 128 --steps 8 --rounds 2 --compile \
  --scale 128 512 --out "$OUT/train_speed_cuda_compiled.json"
part eval_speed 60 python -m bench.eval_speed --run out/nanojepa "${data[@]}" --out "$OUT/eval_speed_cuda.json"
# evidence: lambda at 45M parameters, five epochs, three seeds, four trainings side by side
part lambda 240 python results/studies.py lambda-45m "${data[@]}" --jobs 4

for file in summary.json accuracy.json alignment.json alignment_cosines.png token_loss_curve.png jepa_loss_curve.png; do
  cp "out/nanojepa/$file" "$OUT/nanojepa_$file" || true
done
cp out/rtx3050/summary.json "$OUT/rtx3050_summary.json" || true
cp results/lambda-45m.json "$OUT" || true
tail -n 12 "$OUT"/*.txt
