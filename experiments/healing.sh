#!/bin/sh
# Trainings of docs/healing.md: three seeds each, then the tables. CAMVID: config options for the data and the checkpoint,
# such as train_dataloader.dataset.data_root=... val_dataloader.dataset.data_root=... load_from=...
set -e
R=model.backbone.token_reduction
train() { # NAME CONFIG OPTIONS...
    name=$1 config=$2
    shift 2
    for seed in 0 1 2; do
        python tools/train.py "configs/$config.py" --amp --work-dir "work_dirs/healing/${name}_$seed" \
            --cfg-options randomness.seed=$seed "$@"
    done
}
heal=segmenter_vit-t_tadapter_camvid-heal
train camvid_plain $heal $CAMVID $R=None 'custom_hooks=[]'
train camvid_4x $heal $CAMVID
train camvid_4x_labels $heal $CAMVID custom_hooks.0.labels=True
train camvid_4x_nocode $heal $CAMVID $R.restore=residual
train camvid_2.5x $heal $CAMVID "$R.layers=(2,12)" $R.ratio=0.5
train camvid_2.5x_labels $heal $CAMVID "$R.layers=(2,12)" $R.ratio=0.5 custom_hooks.0.labels=True
heal=segmenter_vit_tadapter_demo-heal
train scenes_plain $heal $R=None 'custom_hooks=[]'
train scenes_4x $heal
train scenes_4x_long $heal train_cfg.max_iters=700 train_cfg.val_interval=350 \
    param_scheduler.0.end=70 param_scheduler.1.begin=70 param_scheduler.1.end=700
train scenes_2.5x $heal "$R.layers=(2,10)" $R.ratio=0.5
python experiments/healing_table.py work_dirs/healing
