"""Similarity of drawings to the pictures of their prompts, between a shuffled control and an upper end."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
The mean cosine between each drawing and the real pictures of its subject, in the features of a judge (an image network
that had no part in the drawing), and the same for a shuffled control, the drawings of other prompts. If the drawings of
another model for the same prompts are given as the upper end, also (similarity - shuffled) / (upper - shuffled)."""
_INPUTS = """
Args:
    predictions: the judge's L2-normalised features of each drawing.
    references: for each drawing the mean of the judge's L2-normalised features of the real pictures of its subject.
    upper: features of the upper end's drawings for the same prompts, in the form of predictions; None leaves
        `normalized` out.
    per_example: also return `each`, the similarity of every drawing, and `shuffled_each`, that of every reference.
Returns:
    similarity, shuffled: -1 .. 1.
    upper, normalized: only with `upper`; `normalized` is None if the upper end is no better than the control.
Raises:
    ValueError: there are fewer than two drawings; features have unequal widths or are not finite; or `upper` has
        another shape."""


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
    matrix = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: some features are NaN or infinite.")
    return matrix
