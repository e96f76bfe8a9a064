#!/usr/bin/env bash
# Everything that docs/benchmarks.md leaves open for want of a GPU, in one command:
#
#     [CAMVID=data/camvid CHECKPOINT=segmenter_vit-t_camvid.pth] bash docs/results/gpu.sh [FOLDER]
#
# A step writes into FOLDER (docs/results/gpu); one that is done is not repeated, so the same command goes on where it
# was stopped. A step that fails is named in FOLDER/failed.txt and tried again next time; the others go on. Steps stand in the order of value.
#   BUDGET=540   seconds; a step that is estimated not to end within them is not started (1500)
#   PLAN=1       prints the steps, their estimates and commands, and runs nothing
#   ONLY='A|B'   these steps alone; a regular expression
#   TINY=1       small models and images on a CPU: checks this script, compiles and measures nothing
#   WHEELS=DIR   installs the wheels there first, for a machine with torch but without a network
#   OUT=DIR      gets all results so far as one file, gpu.tgz, after every step
#   PYTHON, SEEDS="0 1 2", TRAININGS="CONFIG ...", WORKERS=12 of pytest
#
# Estimates are of an H100 and were calculated, not measured: 45 TFLOP/s in float32, 300 in bfloat16, 10 s to start, 3 s
# to build a ViT-L, 40 s to compile one. PLAN=1 prints their sum: below 25 minutes.
cd "$(dirname "$0")/../.." || exit 1
FOLDER=${1:-docs/results/gpu}
PYTHON=${PYTHON:-python}
BUDGET=${BUDGET:-1500}
SEEDS=${SEEDS:-0 1 2}
WORKERS=${WORKERS:-12}
C=configs
TRAININGS=${TRAININGS:-$C/segmenter_vit-t_tadapter_camvid-heal.py $C/segmenter_vit-t_cropr_camvid.py \
    $C/segmenter_vit-t_finetune_camvid.py}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
R=model.backbone.token_reduction
MATH=@model.backbone.attn_backend=math

# Of each model: its plain config, what it is compared with, a reduced one. Stock mmsegmentation has only the first, stock
# mmdetection the Swin; the others are compared with themselves when attention is not fused.
SEGMENTER=$C/segmenter_vit-l_ade20k.py
SEGMENTER_STOCK=mmseg::segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py
SEGMENTER_REDUCED=$C/segmenter_tadapter_ade20k.py
EVA=$C/segmenter_eva02-l_ade20k.py
EVA_REDUCED=$C/segmenter_eva02-l_cropr_ade20k.py@$R.deploy=True
SWIN=$C/maskdino_swin-l_coco-instance.py
SWIN_REDUCED=$C/maskdino_swin-l_tadapter_coco-instance.py
DINO=$C/dinov2-b_full_duts.py
DINO_REDUCED=$C/dinov2-b_dar_duts.py
EOMT=$C/eomt_dinov2-l_coco-panoptic-640.py
EOMT_REDUCED=$C/eomt_dinov2-l_tadapter_coco-panoptic-640.py
EOMT_LARGE=$C/eomt_dinov2-l_coco-panoptic-1280.py
EOMT_LARGE_REDUCED=$C/eomt_dinov2-l_tadapter_coco-panoptic-1280.py
S640='640 640' S512='512 512' S640x960='640 960' S518='518 518' S1280='1280 1280'
B=bfloat16 F=float32
ALL="$B:8:20 $B:1:20 $B:32:10 $F:8:5 $F:1:10 $F:32:3"
LARGE="$B:8:5 $B:1:10 $F:1:5 $F:8:3 $B:32:3"   # float32 at batch 32 would need most of the memory
FEW="$B:8:10 $B:1:10 $B:32:5"
COMPILED=$B:8:20
DEVICE=cuda
CONTRACT=(-k cuda)
ITERATIONS=2000
SCHEDULE=param_scheduler.1.end=$ITERATIONS   # the healing config's own schedule is shorter
EVERY=500
LOADERS=train_dataloader.num_workers=4
if [ -n "$TINY" ]; then
    SEGMENTER=$C/segmenter_vit-t_ade20k.py
    SEGMENTER_STOCK=mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py
    SEGMENTER_REDUCED=$C/segmenter_vit-t_tadapter_ade20k.py
    EVA=$C/segmenter_eva02-s_ade20k.py
    EVA_REDUCED=$C/segmenter_eva02-s_cropr_ade20k.py@$R.deploy=True@$R.r=1@$R.multiple_of=None
    SWIN=$C/maskdino_swin-t_nuclei.py
    SWIN_REDUCED=$C/maskdino_swin-t_tadapter_nuclei.py
    DINO=$C/dinov2-ti_full_camvid.py
    DINO_REDUCED="$C/dinov2-ti_full_camvid.py@model.backbone.peft=dict(type=\"DAR\")@$R=dict(type=\"DAR\")"
    EOMT=$C/eomt_dinov2-ti_nuclei.py
    EOMT_REDUCED=$C/eomt_dinov2-ti_tadapter_nuclei.py
    EOMT_LARGE=$EOMT EOMT_LARGE_REDUCED=$EOMT_REDUCED
    S640='64 64' S512='64 64' S640x960='64 96' S518='70 70' S1280='96 96'
    ALL="$B:1:1" LARGE="$F:1:1" FEW="$F:1:1" COMPILED=$F:1:1
    DEVICE=cpu
    CONTRACT=(-k 'cpu and vit and EViT and empty')
    ITERATIONS=2
    SCHEDULE=
    EVERY=2
    LOADERS="train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
        val_dataloader.num_workers=0 val_dataloader.persistent_workers=False"
    WORKERS=0
    export TORCHDYNAMO_DISABLE=1
fi

SECONDS=0
DONE=() SKIPPED=() FAILED=() LEFT=()
ESTIMATE=0
[ -n "$PLAN" ] || { mkdir -p "$FOLDER/log"; rm -f "$FOLDER/failed.txt"; }

# step NAME SECONDS COMMAND...: run a command that leaves FOLDER/NAME.ok; SECONDS is the estimate of what it takes.
step() {
    local name=$1 estimate=$2 status; shift 2
    [[ $name =~ ^(${ONLY:-.*})$ ]] || return 0
    ESTIMATE=$((ESTIMATE + estimate))
    if [ -n "$PLAN" ]; then
        printf '# %s: %s s\n' "$name" "$estimate"
        printf '%q ' "$@"; echo
    elif [ -e "$FOLDER/log/$name.ok" ]; then
        DONE+=("$name")
    elif [ $((SECONDS + estimate)) -gt "$BUDGET" ]; then
        LEFT+=("$name")
    else
        echo "$name ($SECONDS s of $BUDGET; about $estimate s)"
        # Three times the estimate, and not beyond what is left: a step that hangs leaves time to those after it.
        timeout -k 10 -s INT $((estimate * 3 < BUDGET - SECONDS ? estimate * 3 : BUDGET - SECONDS)) "$@" \
            >"$FOLDER/log/$name.part" 2>&1
        status=$?
        tail -n 400 "$FOLDER/log/$name.part" >"$FOLDER/log/$name.txt" && rm "$FOLDER/log/$name.part"
        if [ $status = 0 ]; then
            touch "$FOLDER/log/$name.ok"; DONE+=("$name")
        else
            FAILED+=("$name")
            { echo "== $name: exit status $status"; tail -n 15 "$FOLDER/log/$name.txt"; } >>"$FOLDER/failed.txt"
        fi
        [ -z "$OUT" ] || tar -czf "$OUT/gpu.tgz" -C "$(dirname "$FOLDER")" "$(basename "$FOLDER")"
    fi
}
skip() { SKIPPED+=("$1: $2"); [ -z "$PLAN" ] || printf '# %s: %s\n' "$1" "$2"; }
# matrix NAME SECONDS RUNS SHAPE CONFIG... [OPTIONS]: FOLDER/NAME/DTYPE_batchN.json for each of the RUNS.
matrix() {
    local name=$1 estimate=$2 runs=$3 shape=$4; shift 4
    # shellcheck disable=SC2086
    step "$name" "$estimate" "$PYTHON" experiments/benchmark_matrix.py "$FOLDER/$name" $runs -- \
        "$@" --shape $shape --device $DEVICE
}
matched() {
    "$PYTHON" experiments/matched_settings.py "$SEGMENTER" --shape $S640 --device $DEVICE >"$FOLDER/matched.part" &&
        mv "$FOLDER/matched.part" "$FOLDER/matched.txt"
}
# Each seed in a process of its own, at the same time: the model is small. The last line of a file has the final mIoU.
train() {
    local config=$1 name seed status=0 jobs=()
    name=$(basename "$config" .py)
    for seed in $SEEDS; do
        [ -e "$FOLDER/${name}_seed$seed.jsonl" ] || {
            "$PYTHON" tools/train.py "$config" --amp --resume --work-dir "$WORK/${name}_seed$seed" --cfg-options \
                load_from="$CHECKPOINT" randomness.seed="$seed" train_dataloader.dataset.data_root="$CAMVID" \
                val_dataloader.dataset.data_root="$CAMVID" test_dataloader.dataset.data_root="$CAMVID" \
                $LOADERS $SCHEDULE train_cfg.max_iters=$ITERATIONS train_cfg.val_interval=$EVERY \
                default_hooks.checkpoint.interval=$EVERY default_hooks.checkpoint.max_keep_ckpts=1 &&
                grep -h mIoU "$WORK/${name}_seed$seed"/*/vis_data/scalars.json >"$FOLDER/${name}_seed$seed.part" &&
                mv "$FOLDER/${name}_seed$seed.part" "$FOLDER/${name}_seed$seed.jsonl"
        } &
        jobs+=($!)
    done
    for seed in "${jobs[@]}"; do wait "$seed" || status=1; done
    return $status
}
export -f matched train
WORK=${WORK:-work_dirs/gpu}
export FOLDER PYTHON SEGMENTER S640 DEVICE SEEDS WORK CAMVID CHECKPOINT ITERATIONS SCHEDULE EVERY LOADERS

if [ -n "$WHEELS" ] && [ -z "$PLAN" ]; then
    # Beside what the machine has: its torch stays.
    SITE=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$PYTHONPATH:$SITE
fi
if [ -z "$PLAN" ] && ! "$PYTHON" -c "
import torch, mmseg, mmdet, mmtr, fvcore
assert '$DEVICE' == 'cpu' or torch.cuda.is_available(), 'there is no CUDA GPU; TINY=1 runs on a CPU'"; then
    echo "This Python cannot run the benchmarks: see above, and docs/benchmarks.md, 'On a GPU'." >&2
    exit 1
fi

matrix segmenter_vit-l_640 95 "$ALL" "$S640" $SEGMENTER_STOCK $SEGMENTER $SEGMENTER_REDUCED
matrix segmenter_vit-l_640_compiled 100 "$COMPILED" "$S640" $SEGMENTER $SEGMENTER_REDUCED --compile --part backbone
step matched 80 bash -c matched
METHODS=()
if [ -e "$FOLDER/matched.txt" ]; then mapfile -t METHODS < <(cut -f2 "$FOLDER/matched.txt"); fi
if [ ${#METHODS[@]} -gt 0 ] || [ -n "$PLAN" ]; then
    matrix methods_vit-l_640 120 "$FEW" "$S640" $SEGMENTER "${METHODS[@]}" --part backbone
else
    skip methods_vit-l_640 'matched.txt is not there yet'
fi
matrix eomt_dinov2-l_640 80 "$ALL" "$S640" $EOMT$MATH $EOMT $EOMT_REDUCED
matrix cropr_eva02-l_512 60 "$ALL" "$S512" $EVA$MATH $EVA "$EVA_REDUCED"
matrix maskdino_swin-l_640x960 70 "$LARGE" "$S640x960" $SWIN@model.backbone.type=SwinTransformer $SWIN $SWIN_REDUCED
matrix dinov2-b_518 40 "$ALL" "$S518" $DINO$MATH $DINO "$DINO_REDUCED" --part backbone
XFORMERS=
if "$PYTHON" -c 'import xformers.ops' 2>/dev/null && [ -z "$TINY" ]; then
    XFORMERS="$SEGMENTER@model.backbone.attn_backend=xformers"
else
    skip attention_xformers 'xformers cannot be imported'
fi
# shellcheck disable=SC2086
matrix attention_auto 30 "$FEW" "$S640" $SEGMENTER $SEGMENTER$MATH $XFORMERS --part backbone
matrix attention_flash 20 "$FEW" "$S640" $SEGMENTER $SEGMENTER_REDUCED --part backbone --sdpa flash
if [ -z "$TINY" ]; then
    matrix attention_without_flash 20 "$FEW" "$S640" $SEGMENTER $SEGMENTER_REDUCED --part backbone --sdpa mem_efficient
else
    matrix attention_without_flash 20 "$FEW" "$S640" $SEGMENTER $SEGMENTER_REDUCED --part backbone --sdpa math
fi
step contract 110 "$PYTHON" -m pytest tests/test_reducers/test_contract{,_calls,_stages}.py "${CONTRACT[@]}" -m 'not slow' \
    -q -n "$WORKERS" -p no:cacheprovider
matrix eomt_dinov2-l_1280 80 "$LARGE" "$S1280" $EOMT_LARGE $EOMT_LARGE_REDUCED
if [ -z "$CAMVID" ] || [ -z "$CHECKPOINT" ]; then
    skip trainings 'CAMVID=folder and CHECKPOINT=file were not given'
else
    for config in $TRAININGS; do
        if [ -e "$config" ]; then
            step "train_$(basename "$config" .py)" 80 bash -c 'train "$0"' "$config"
        else
            skip "$config" 'there is no such config'
        fi
    done
fi
matrix eomt_dinov2-l_640_compiled 85 "$COMPILED" "$S640" $EOMT $EOMT_REDUCED --compile --part backbone
matrix dinov2-b_518_compiled 55 "$COMPILED" "$S518" $DINO "$DINO_REDUCED" --compile --part backbone
matrix cropr_eva02-l_512_compiled 85 "$COMPILED" "$S512" $EVA "$EVA_REDUCED" --compile --part backbone
matrix maskdino_swin-l_640x960_compiled 100 "$COMPILED" "$S640x960" $SWIN $SWIN_REDUCED --compile --part backbone

if [ -n "$PLAN" ]; then
    echo "# in all: $ESTIMATE s, estimated for an H100"
    exit
fi
{
    echo "After $SECONDS s. Done: ${DONE[*]:-nothing}"
    printf 'Skipped: %s\n' "${SKIPPED[@]:-nothing}"
    echo "Failed: ${FAILED[*]:-nothing}"
    echo "Not started within $BUDGET s: ${LEFT[*]:-nothing}"
} | tee "$FOLDER/summary.txt"
[ -z "$OUT" ] || tar -czf "$OUT/gpu.tgz" -C "$(dirname "$FOLDER")" "$(basename "$FOLDER")"
[ ${#FAILED[@]} = 0 ]
