#!/bin/sh
# Print both tables of the paper for seed-tiny, on the held-out styles and concepts of the emoji set
# (examples/seed_tiny/build_emoji.py).
#
#   sh examples/reproduce/seed_tiny.sh DATA OUTPUT [BIDIRECTIONAL]
#
# DATA           the folder that build_emoji.py wrote, with train.parquet and the val and test splits
# OUTPUT         metrics and predictions go to OUTPUT/SPLIT
# BIDIRECTIONAL  the control of stage I, for the first row of Table 1: examples/train_stage1.py makes it from the
#                pretrained Q-Former by examples/recipes/stage1/tiny_bidirectional.yaml
set -eu
data=$1 output=$2

for split in val_style val_concept test_style test_concept test_both; do
    seed evaluate retrieval --data "$data" --split $split --train-data "$data" --train-split train \
        ${3:+--bidirectional "$3"} --output "$output/$split"
done
for split in val_style test_style test_concept; do
    seed evaluate reconstruction --data "$data" --split $split --limit 300 --prefix-lengths 1,2,4,8,16 \
        --output "$output/$split"
done
