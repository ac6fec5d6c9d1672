#!/bin/sh
# Print Table 2 of the paper (arXiv 2307.08041): CLIP similarity between pictures and their reconstructions from codes,
# beside Stable Diffusion's drawings from the caption, on COCO and Flickr30K (Karpathy's test splits).
#
#   sh examples/reproduce/table2_clip_similarity.sh MODEL DATA OUTPUT [CLIP]
#
# MODEL   a SEED repository with image_tokenizer/ and decoder/ (or pointers to them)
# DATA    the folder that table1_retrieval.sh takes
# OUTPUT  metrics and predictions go to OUTPUT/flickr30k and OUTPUT/coco
# CLIP    the judge, a folder or Hub id; the default is openai/clip-vit-large-patch14 (our choice: the paper names none)
#
# In the paper, SEED's reconstructions score slightly below Stable Diffusion's own drawings and above GILL.
# Every picture is drawn twice, so use a GPU; the option --limit 500 draws a random 500.
set -eu
model=$1 data=$2 output=$3 judge=${4:-openai/clip-vit-large-patch14}

seed evaluate reconstruction --model "$model" --judge "$judge" \
    --data "$data/dataset_flickr30k.json" --image-root "$data/flickr30k-images" --split test --output "$output/flickr30k"
seed evaluate reconstruction --model "$model" --judge "$judge" \
    --data "$data/dataset_coco.json" --image-root "$data/coco" --split test --output "$output/coco"
