"""Similarity of drawings to what they are to show, by a judge's features, from a shuffled control to an upper end."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
The mean cosine between each drawing and the real pictures of what it is to show, by features of a judge (an image
network that had no part in the drawing); beside it a shuffled control, drawings of other prompts. With the drawings of
another model for the same prompts as the upper end, (similarity - shuffled) / (upper - shuffled)."""
_INPUTS = """
Args:
    predictions: the judge's features of each drawing, L2-normalised.
    references: of each, the mean of the judge's L2-normalised features of the real pictures of what it is to show.
    upper: features of the upper end's drawings for the same prompts, as predictions; None leaves `normalized` out.
    per_example: also return `each` and `shuffled_each`, of every drawing and of every reference.
Returns:
    similarity, shuffled: -1 .. 1.
    upper, normalized: with `upper`; `normalized` is None where the upper end is no better than the control.
Raises:
    ValueError: fewer than two drawings; features of unequal widths, or not finite; not as many of `upper`."""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class DrawingSimilarity(evaluate.Metric):
    def _info(self):
        vector = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": vector, "references": vector}),
        )

    def _compute(self, predictions, references, upper=None, per_example=False):
        if len(predictions) < 2:
            raise ValueError(f"{len(predictions)} drawings; the shuffled control needs at least 2.")
        drawings, targets = _matrix(predictions, "predictions"), _matrix(references, "references")
        if drawings.shape != targets.shape:
            raise ValueError(f"The drawings' features are {drawings.shape}, the references' {targets.shape}.")
        cosines = drawings @ targets.T
        each = np.diagonal(cosines)
        shuffled = (cosines.sum(axis=0) - each) / (len(each) - 1)
        result = {"similarity": float(each.mean()), "shuffled": float(shuffled.mean())}
        if upper is not None:
            best = _matrix(upper, "upper")
            if best.shape != drawings.shape:
                raise ValueError(f"The upper end's features are {best.shape}, the drawings' {drawings.shape}.")
            result["upper"] = float((best * targets).sum(axis=1).mean())
            span = result["upper"] - result["shuffled"]
            above = result["similarity"] - result["shuffled"]
            result["normalized"] = above / span if span > 1e-3 else None
        return result | {"each": each.tolist(), "shuffled_each": shuffled.tolist()} if per_example else result


def _matrix(rows, name: str) -> np.ndarray:
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"{name}: features have the widths {sorted(widths)}; expected one.")
    matrix = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: some features are NaN or infinite.")
    return matrix
