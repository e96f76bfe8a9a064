#!/usr/bin/env bash
# Everything that docs/benchmarks.md reports, in order of importance; what is there already is not measured again.
# CAMVID: a trained checkpoint of configs/segmenter_vit-t_camvid.py. Two hours on 2 quiet cores.
cd "$(dirname "$0")/.." || exit 1
CAMVID=${CAMVID:-checkpoints/segmenter_vit-t_camvid.pth}
PYTHON=${PYTHON:-python}
R=docs/results

compare() {   # compare OUT CONFIG CHECKPOINT REDUCTIONS [OPTIONS]
    local out=$R/$1; shift
    [ -e "$out.json" ] || $PYTHON tools/compare.py "$@" --out "$out"
}
benchmark() { # benchmark OUT [OPTIONS]
    local out=$R/$1.json; shift
    mkdir -p "$(dirname "$out")"
    [ -e "$out" ] || $PYTHON tools/benchmark.py "$@" --json "$out"
}
KEY=model.backbone.token_reduction
L=configs/segmenter_vit-l_ade20k.py

compare camvid configs/segmenter_vit-t_camvid.py "$CAMVID" configs/reductions/camvid.py
compare camvid_targets configs/segmenter_vit-t_camvid.py "$CAMVID" configs/reductions/camvid_targets.py
compare camvid_720 configs/segmenter_vit-t_camvid-720x540.py "$CAMVID" configs/reductions/camvid_720.py
compare demo configs/segmenter_vit_demo.py demo/segmenter_vit_demo.pth configs/reductions/demo.py
benchmark methods_vit-l_640 $L configs/segmenter_tadapter_ade20k.py "$L@$KEY.type=TokenAdapter" \
    "$L@$KEY.type=GridPool@$KEY.ratio=0.3" configs/segmenter_expediting_ade20k.py configs/segmenter_evit_ade20k.py \
    configs/segmenter_tome_ade20k.py "$L@$KEY.type=ToMe@$KEY.mode=progressive@$KEY.r=40" "$L@$KEY.type=Random" \
    --shape 640 640 --part backbone --repeats 3
HEAD=model.decode_head.token_reduction
benchmark head_vit-l_640 $L "$L@$KEY.type=TokenAdapter" \
    "$L@$KEY.type=TokenAdapter@$HEAD.type=GridPool@$HEAD.ratio=0.3@$HEAD.layers=(0,2)" --shape 640 640 --repeats 3
benchmark compile_vit-s_512 configs/segmenter_vit-s_ade20k.py "configs/segmenter_vit-s_ade20k.py@$KEY.type=TokenAdapter" \
    "configs/segmenter_vit-s_ade20k.py@$KEY.type=ToMe" --shape 512 512 --compile --part model backbone --repeats 10
for size in 512 640 768 1024; do
    for model in s b l; do
        C=configs/segmenter_vit-${model}_ade20k.py
        benchmark resolution/vit-${model}_${size}_batch1 $C "$C@$KEY.type=TokenAdapter" \
            --shape $size $size --part backbone --repeats 2
    done
done
compare token_adapter_camvid configs/segmenter_vit-t_camvid.py "$CAMVID" configs/reductions/token_adapter_ablation.py
for size in 512 640 768 1024; do
    for model in s b l; do
        C=configs/segmenter_vit-${model}_ade20k.py
        benchmark resolution/vit-${model}_${size}_batch8_bf16 $C "$C@$KEY.type=TokenAdapter" \
            --shape $size $size --part backbone --batch-size 8 --dtype bfloat16 --repeats 1
    done
done
$PYTHON tools/update_benchmarks.py
