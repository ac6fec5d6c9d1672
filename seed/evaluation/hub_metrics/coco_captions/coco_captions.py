"""The caption metrics of COCO (BLEU, METEOR, ROUGE-L, CIDEr, SPICE) by pycocoevalcap, as an `evaluate` metric."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import evaluate
import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

_CITATION = """\
@article{chen2015microsoft,
  title={Microsoft COCO Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Doll{\\'a}r,
          Piotr and Zitnick, C. Lawrence},
  journal={arXiv:1504.00325},
  year={2015}
}"""
_DESCRIPTION = """\
BLEU@1-4, METEOR, ROUGE-L, CIDEr and SPICE as the COCO caption server computes them, by pycocoevalcap. Each picture has
one prediction and one or more references, which the Stanford PTB tokenizer splits. METEOR, the PTB tokenizer and SPICE
need Java. SPICE also needs Stanford CoreNLP 3.6.0, which its package does not contain and which is never downloaded
here. A metric that cannot be computed is None, and `missing` says why."""
_INPUTS = """
Args:
    predictions: one caption for each picture.
    references: the list of captions of each picture.
    tokenizer: "ptb" (needs Java); "plain", which takes words of letters and digits, with hyphens and apostrophes inside
        them, in lower case; or "auto", the first of them that can run. The result names the tokenizer that ran, because
        scores by different tokenizers are not comparable.
    per_caption: also return `cider_each`, CIDEr of each picture (their mean is `cider`), and `rouge_l_each`.
Returns:
    bleu_1 .. bleu_4, meteor, rouge_l, spice: 0 .. 1; cider: 0 .. 10, usually given times 100; tokenizer: its name;
    missing: a dict of reasons.
Raises:
    ValueError: a picture has no references, there are no pictures, or "ptb" is to run without Java."""
_STATISTICS = "PTBTokenizer tokenized"
# A word of the plain tokenizer; on most captions the PTB tokenizer gives the same once COCO has dropped punctuation.
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_NO_JAVA = "Java was not found: install a runtime (on Debian `apt install default-jre-headless`)."
_SPICE_FILES = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class CocoCaptions(evaluate.Metric):
    def _info(self):
        features = {
            "predictions": datasets.Value("string"),
            "references": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            codebase_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(self, predictions, references, tokenizer="auto", per_caption=False):
        _check(predictions, references)
        java = _java_runs()
        if tokenizer == "auto":
            tokenizer = "ptb" if java else "plain"
        if tokenizer not in ("ptb", "plain"):
            raise ValueError(f'tokenizer is {tokenizer!r}; expected "auto", "ptb" or "plain".')
        if tokenizer == "ptb" and not java:
            raise ValueError(f'The PTB tokenizer cannot run. {_NO_JAVA} Or take tokenizer="plain".')
        tokenize = _ptb if tokenizer == "ptb" else _plain
        hypotheses = tokenize([[caption] for caption in predictions])
        targets = tokenize(references)

        bleu, _ = Bleu(4).compute_score(targets, hypotheses, verbose=0)
        rouge, rouge_each = Rouge().compute_score(targets, hypotheses)
        cider, cider_each = Cider().compute_score(targets, hypotheses)
        result = {f"bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
        result |= {"meteor": None, "rouge_l": float(rouge), "cider": float(cider), "spice": None}
        missing = {}
        if java:
            result["meteor"] = float(Meteor().compute_score(targets, hypotheses)[0])
        else:
            missing["meteor"] = missing["tokenizer ptb"] = _NO_JAVA
        if reason := _why_no_spice(java):
            missing["spice"] = reason
        else:
            from pycocoevalcap.spice.spice import Spice

            result["spice"] = float(Spice().compute_score(targets, hypotheses)[0])
        if per_caption:
            result["cider_each"] = [float(score) for score in cider_each]
            result["rouge_l_each"] = [float(score) for score in rouge_each]
        return result | {"tokenizer": tokenizer, "missing": missing}


def _check(predictions, references):
    if not len(predictions):
        raise ValueError("There are no predictions to score.")
    for number, captions in enumerate(references):
        if not len(captions):
            raise ValueError(f"Picture {number} has no references; leave it out.")


def _java_runs() -> bool:
    if shutil.which("java") is None:
        return False
    # macOS has a java that only says where to get one.
    return subprocess.run(["java", "-version"], capture_output=True).returncode == 0


def _why_no_spice(java: bool) -> str | None:
    if not java:
        return _NO_JAVA
    folder = Path(pycocoevalcap.__path__[0]) / "spice" / "lib"
    absent = [name for name in _SPICE_FILES if not (folder / name).is_file()]
    if absent:
        return f"SPICE needs {' and '.join(absent)} of Stanford CoreNLP in pycocoevalcap's spice/lib."
    return None


def _ptb(captions_of_pictures) -> dict[int, list[str]]:
    # The tokenizer reads one caption per line, so no caption may contain a line break of any kind.
    captions = {
        number: [{"caption": " ".join(caption.split())} for caption in captions]
        for number, captions in enumerate(captions_of_pictures)
    }
    with _without_statistics():
        return PTBTokenizer().tokenize(captions)


@contextlib.contextmanager
def _without_statistics():
    """Hide the lines about speed that the tokenizer writes to stderr, and show the others."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            lines = [line for line in written.read().decode(errors="replace").splitlines() if _STATISTICS not in line]
            if lines:
                print("\n".join(lines), file=sys.stderr)


def _plain(captions_of_pictures) -> dict[int, list[str]]:
    return {
        number: [" ".join(_WORD.findall(caption.lower())) for caption in captions]
        for number, captions in enumerate(captions_of_pictures)
    }
