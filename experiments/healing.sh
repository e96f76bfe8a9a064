#!/bin/sh
# The choice between two methods on training images, the trainings of docs/healing.md, three seeds each, and their tables:
#     CAMVID=data/camvid CHECKPOINT=segmenter_vit-t_camvid.pth experiments/healing.sh
set -e
R=model.backbone.token_reduction
for method in TokenAdapter GridPool; do
    python tools/test.py configs/segmenter_vit-t_camvid.py "$CHECKPOINT" --token-reduction $method 'layers=(1,12)' ratio=0.6 \
        --cfg-options test_dataloader.dataset.data_root="$CAMVID" \
        test_dataloader.dataset.data_prefix.img_path=img_dir/train test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/train
done
train() { # NAME CONFIG OPTIONS...
    name=$1 config=$2
    shift 2
    for seed in 0 1 2; do
        python tools/train.py "configs/$config.py" --amp --work-dir "work_dirs/healing/${name}_$seed" \
            --cfg-options randomness.seed=$seed "$@"
    done
}
heal=segmenter_vit-t_tadapter_camvid-heal
camvid="load_from=$CHECKPOINT train_dataloader.dataset.data_root=$CAMVID val_dataloader.dataset.data_root=$CAMVID"
train camvid_plain $heal $camvid $R=None 'custom_hooks=[]'
train camvid_4x $heal $camvid
train camvid_4x_labels $heal $camvid custom_hooks.0.labels=True
train camvid_4x_nocode $heal $camvid $R.restore=residual
train camvid_2.5x $heal $camvid "$R.layers=(2,12)" $R.ratio=0.5
train camvid_2.5x_labels $heal $camvid "$R.layers=(2,12)" $R.ratio=0.5 custom_hooks.0.labels=True
heal=segmenter_vit_tadapter_demo-heal
train scenes_plain $heal $R=None 'custom_hooks=[]'
train scenes_4x $heal
train scenes_4x_long $heal train_cfg.max_iters=700 train_cfg.val_interval=350 \
    param_scheduler.0.end=70 param_scheduler.1.begin=70 param_scheduler.1.end=700
train scenes_2.5x $heal "$R.layers=(2,10)" $R.ratio=0.5
python experiments/healing_table.py work_dirs/healing
