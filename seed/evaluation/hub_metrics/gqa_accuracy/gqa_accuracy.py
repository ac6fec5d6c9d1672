"""Accuracy as GQA counts it: an answer is right if it equals the one right answer."""

import datasets
import evaluate

_CITATION = """\
@inproceedings{hudson2019gqa,
  title={GQA: A New Dataset for Real-World Visual Reasoning and Compositional Question Answering},
  author={Hudson, Drew A. and Manning, Christopher D.},
  booktitle={CVPR},
  year={2019}
}"""
_DESCRIPTION = """\
The share of predictions that equal the answer. GQA's answers are in lower case and without a full stop. Generated text
is brought to that form first (surrounding space, letter case, full stops at the end), as is usual for generative
models. Nothing else is normalised: "2" is not "two"."""
_INPUTS = """
Args:
    predictions: one answer for each question.
    references: the one right answer of each question.
    per_example: also return `each`, 1.0 or 0.0 for every question.
Returns:
    gqa_accuracy: 0 .. 1.
Raises:
    ValueError: there are no predictions."""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class GqaAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, per_example=False):
        if not len(predictions):
            raise ValueError("There are no predictions to score.")
        pairs = zip(predictions, references, strict=True)
        each = [float(_plain(prediction) == _plain(reference)) for prediction, reference in pairs]
        result = {"gqa_accuracy": sum(each) / len(each)}
        return result | {"each": each} if per_example else result


def _plain(text: str) -> str:
    return text.strip().rstrip(".").rstrip().lower()
