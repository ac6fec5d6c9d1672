"""Exact-name accuracy: a caption is right if it is one of its picture's names."""

import datasets
import evaluate

_DESCRIPTION = """\
The share of predictions that are one of their picture's names. Letter case, spacing and a full stop at the end do not
count; everything else does."""
_INPUTS = """
Args:
    predictions: one text for each picture.
    references: the list of names of each picture, any of which is right.
    per_example: also return `each`, 1.0 or 0.0 for every picture.
Returns:
    name_accuracy: 0 .. 1.
Raises:
    ValueError: there are no predictions, or a picture has no names."""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class NameAccuracy(evaluate.Metric):
    def _info(self):
        features = {
            "predictions": datasets.Value("string"),
            "references": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions, references, per_example=False):
        if not len(predictions):
            raise ValueError("There are no predictions to score.")
        for number, names in enumerate(references):
            if not len(names):
                raise ValueError(f"Picture {number} has no names; leave it out.")
        each = [
            float(_key(prediction) in {_key(name) for name in names})
            for prediction, names in zip(predictions, references, strict=True)
        ]
        result = {"name_accuracy": sum(each) / len(each)}
        return result | {"each": each} if per_example else result


def _key(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
