#!/bin/sh
# The choices on training images, the trainings of docs/healing.md, and their tables; three seeds each, pilots one:
#     CAMVID=data/camvid CHECKPOINT=segmenter_vit-t_camvid.pth experiments/healing.sh
set -e
R=model.backbone.token_reduction
on_training_images() { # CONFIG CHECKPOINT OPTIONS...
    python tools/test.py "$@" --cfg-options test_dataloader.dataset.data_root="$CAMVID" \
        test_dataloader.dataset.data_prefix.img_path=img_dir/train test_dataloader.dataset.data_prefix.seg_map_path=ann_dir/train
}
for method in TokenAdapter GridPool; do
    on_training_images configs/segmenter_vit-t_camvid.py "$CHECKPOINT" --token-reduction $method 'layers=(1,12)' ratio=0.6
done
train() { # NAME CONFIG OPTIONS...
    name=$1 config=$2
    shift 2
    for seed in $seeds; do
        python tools/train.py "configs/$config.py" --amp --work-dir "work_dirs/healing/${name}_$seed" \
            --cfg-options randomness.seed=$seed "$@"
    done
}
seeds='0 1 2'
heal=segmenter_vit-t_tadapter_camvid-heal
camvid="load_from=$CHECKPOINT train_dataloader.dataset.data_root=$CAMVID val_dataloader.dataset.data_root=$CAMVID"
train camvid_plain $heal $camvid $R=None 'custom_hooks=[]'
train camvid_4x $heal $camvid
train camvid_4x_labels $heal $camvid custom_hooks.0.labels=True
train camvid_4x_nocode $heal $camvid $R.restore=residual
train camvid_4x_07 $heal $camvid $R.ratio=0.7 optim_wrapper.optimizer.lr=5e-4
train camvid_4x_075 $heal $camvid $R.ratio=0.75
train camvid_2.5x $heal $camvid "$R.layers=(2,12)" $R.ratio=0.5
train camvid_2.5x_labels $heal $camvid "$R.layers=(2,12)" $R.ratio=0.5 custom_hooks.0.labels=True
heal=segmenter_vit-t_tadapter_camvid-heal6x
short="train_cfg.max_iters=400 train_cfg.val_interval=400 param_scheduler.0.end=40 param_scheduler.1.begin=40 param_scheduler.1.end=400"
for pilot in "0.65 2e-4" "0.65 5e-4" "0.65 1e-3" "0.7 2e-4"; do
    ratio=${pilot% *} lr=${pilot#* }
    python tools/train.py configs/$heal.py --amp --work-dir "work_dirs/healing_pilots/${ratio}_$lr" --cfg-options randomness.seed=0 \
        $camvid $short $R.ratio=$ratio optim_wrapper.optimizer.lr=$lr
    on_training_images configs/$heal.py "work_dirs/healing_pilots/${ratio}_$lr/iter_400.pth" --token-reduction TokenAdapter 'layers=(0,12)' \
        ratio=$ratio restore=learned
done
train camvid_6x_400 $heal $camvid $short
train camvid_6x_400_labels $heal $camvid $short custom_hooks.0.labels=True
train camvid_6x $heal $camvid
train camvid_plain_long $heal $camvid $R=None 'custom_hooks=[]' optim_wrapper.optimizer.lr=2e-4
heal=segmenter_vit_tadapter_demo-heal
short="train_cfg.max_iters=250 train_cfg.val_interval=250 param_scheduler.0.end=25 param_scheduler.1.begin=25 param_scheduler.1.end=250"
slow=optim_wrapper.optimizer.lr=2e-4
train scenes_plain $heal $short $slow $R=None 'custom_hooks=[]'
train scenes_4x $heal $short $slow
train scenes_2.5x $heal $short $slow "$R.layers=(2,10)" $R.ratio=0.5
train scenes_plain_long $heal $slow $R=None 'custom_hooks=[]'
train scenes_2.5x_long $heal $slow "$R.layers=(2,10)" $R.ratio=0.5
train scenes_2.5x_long_labels $heal $slow "$R.layers=(2,10)" $R.ratio=0.5 custom_hooks.0.labels=True
train scenes_4x_long $heal
train scenes_4x_long_labels $heal custom_hooks.0.labels=True
seeds=0
train scenes_4x_long_quarter $heal custom_hooks.0.labels=True custom_hooks.0.features=0.25 custom_hooks.0.logits=0.25
train scenes_4x_long_slow $heal $slow
train scenes_4x_long_fast $heal optim_wrapper.optimizer.lr=1e-3
train camvid_4x_07_slow segmenter_vit-t_tadapter_camvid-heal $camvid $R.ratio=0.7
python experiments/healing_table.py work_dirs/healing
