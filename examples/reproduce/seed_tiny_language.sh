#!/bin/sh
# Score captions, answers and drawings of seed-tiny, on held-out styles and concepts of the emoji set and on easy-vqa.
# `examples/seed_tiny/build_emoji.py` makes the pictures, and
# `examples/seed_tiny/build_questions.py --emoji EMOJI --easy-vqa --output QUESTIONS` makes the questions.
#
#   sh examples/reproduce/seed_tiny_language.sh EMOJI QUESTIONS OUTPUT [MODEL]
#
# EMOJI      the folder that build_emoji.py wrote
# QUESTIONS  the folder that build_questions.py wrote
# OUTPUT     metrics, predictions and sheets go to OUTPUT/caption/SPLIT, OUTPUT/vqa/SPLIT and OUTPUT/draw/SPLIT
# MODEL      a SEED repository with a language model; seed-tiny if left out
# Answers are written greedily, because beams take about four times as long.
set -eu
emoji=$1 questions=$2 output=$3

for split in val_style test_style test_concept; do
    seed evaluate caption ${4:+--model "$4"} --data "$emoji" --split $split \
        --train-data "$emoji" --train-split train --output "$output/caption/$split"
done
for split in emoji_val_style emoji_test_style emoji_test_concept; do
    seed evaluate vqa --num-beams 1 ${4:+--model "$4"} --data "$questions" --split $split \
        --train-data "$questions" --train-split emoji_train --output "$output/vqa/$split"
done
seed evaluate vqa --num-beams 1 ${4:+--model "$4"} --data "$questions" --split easy_vqa_test \
    --train-data "$questions" --train-split easy_vqa_train --output "$output/vqa/easy_vqa_test"
# The drawings are compared with real pictures of a concept in all its styles: training, validation and test.
seed evaluate draw ${4:+--model "$4"} --data "$emoji" --split test_style --also-real val_style --limit 200 \
    --train-data "$emoji" --train-split train --judge-cache "$output/judge" --output "$output/draw/test_style"
seed evaluate draw ${4:+--model "$4"} --data "$emoji" --split test_concept --also-real test_both \
    --train-data "$emoji" --train-split train --judge-cache "$output/judge" --output "$output/draw/test_concept"
