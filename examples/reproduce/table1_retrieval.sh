#!/bin/sh
# Print Table 1 of the paper (arXiv 2307.08041): zero-shot image-text retrieval on Flickr30K (1K test pictures) and COCO
# (5K). The splits are Karpathy's, and every caption is a text of its own.
#
#   sh examples/reproduce/table1_retrieval.sh MODEL DATA OUTPUT [BLIP2]
#
# MODEL   a SEED repository or image tokenizer with both branches; convert SEED-1 with
#         `seed convert seed1 --text-tokenizer bert-base-uncased`, so that it has its text tokenizer
# DATA    a folder with dataset_flickr30k.json and dataset_coco.json, and their pictures in flickr30k-images/ and coco/
#         (with the subfolders that the JSON names, such as coco/val2014/)
# OUTPUT  metrics and predictions go to OUTPUT/flickr30k and OUTPUT/coco
# BLIP2   a bidirectional Q-Former for the first row, which `seed convert blip2` makes of Salesforce/blip2-itm-vit-g
#
# The paper's R@1, image to text / text to image:
#                       Flickr30K      COCO
#   BLIP-2              81.9 / 82.4    65.3 / 59.1
#   causal embeddings   90.0 / 80.0    71.9 / 56.7
#   codes               86.3 / 75.9    65.7 / 52.5
set -eu
model=$1 data=$2 output=$3

seed evaluate retrieval --model "$model" ${4:+--bidirectional "$4"} --texts captions \
    --data "$data/dataset_flickr30k.json" --image-root "$data/flickr30k-images" --split test --output "$output/flickr30k"
seed evaluate retrieval --model "$model" ${4:+--bidirectional "$4"} --texts captions \
    --data "$data/dataset_coco.json" --image-root "$data/coco" --split test --output "$output/coco"
