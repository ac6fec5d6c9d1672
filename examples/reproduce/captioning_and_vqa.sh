#!/bin/sh
# Score captions of COCO (Karpathy's test split, the paper's prompt "A photo of") and answers to VQAv2's and GQA's
# questions ("Question: {} Short answer").
#
#   sh examples/reproduce/captioning_and_vqa.sh MODEL DATA OUTPUT
#
# MODEL   a SEED repository with a language model
# DATA    a folder with dataset_coco.json, its pictures in coco/ (as for table1_retrieval.sh), and vqav2.parquet and
#         gqa.parquet with the columns `question`, `answers` (VQAv2 has ten, GQA has one), `image`, and, if there is
#         one, `kind`
# OUTPUT  metrics and predictions go to OUTPUT/coco, OUTPUT/vqav2 and OUTPUT/gqa
#
# The paper's scores on COCO (times 100):
#                               CIDEr   BLEU@4   METEOR
#   BLIP-2                      131.0
#   SEED-OPT2.7B                119.0   34.6     28.4
# METEOR and the PTB tokenizer need Java; without it the report says what is missing. The paper does not say how it
# decodes, so we take the beams and length penalties of BLIP-2's evaluations.
set -eu
model=$1 data=$2 output=$3

seed evaluate caption --model "$model" --num-beams 5 --length-penalty 1 \
    --data "$data/dataset_coco.json" --image-root "$data/coco" --split test --output "$output/coco"
for set in vqav2 gqa; do
    seed evaluate vqa --model "$model" --num-beams 5 --length-penalty -1 \
        --data "$data/$set.parquet" --output "$output/$set"
done
