"""VQA accuracy: the consensus of ten people (VQAv2), and a plain match where a question has fewer answers."""

import re

import datasets
import evaluate

_CITATION = """\
@inproceedings{antol2015vqa,
  title={VQA: Visual Question Answering},
  author={Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv and Zitnick,
          C. Lawrence and Parikh, Devi},
  booktitle={ICCV},
  year={2015}
}"""
_DESCRIPTION = """\
If a question has ten answers by ten people, as in VQAv2, an answer that n of the others gave scores min(n / 3, 1),
averaged over the ten ways to leave one person out. If it has any other number of answers (easy-vqa has one, questions
on names have some), each of them is right: the score is 1 if the prediction is among them, else 0. All answers are
first normalised as the VQA server does: lower case, number words to digits, no articles, punctuation dropped,
apostrophes restored in contractions."""
_INPUTS = """
Args:
    predictions: one answer for each question.
    references: the list of answers of each question.
    per_example: also return `each`, the accuracy of every question.
Returns:
    vqa_accuracy: 0 .. 1 (papers print it times 100).
Raises:
    ValueError: there are no predictions, or a question has no answers."""

PEOPLE = 10  # number of people who answered each question of VQAv2
AGREEING = 3  # an answer that so many of the others gave has the full score

_NUMBERS = dict(zip("none one two three four five six seven eight nine ten".split(), map(str, range(11))))
_NUMBERS["zero"] = "0"
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

# Stems of the contractions that are restored: "dont" and "don't" are the same answer. They give all contractions that
# the VQA server restores except "'ow's'at", and without its error that makes "somebodyd" of "somebody'd".
_STEMS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'d": "he how it someone something there they where who you",
}
_DOUBLE_STEMS = {
    "n't've": "could had might should would",
    "'d've": "he it she somebody someone something there they we who you y'all",
    "'ll": "y'all",
}


def _contractions() -> dict[str, str]:
    table = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"}
    for ending, stems in _STEMS.items():
        for stem in stems.split():
            table[stem + ending.replace("'", "")] = stem + ending
    for ending, stems in _DOUBLE_STEMS.items():
        for stem in stems.split():
            whole = stem + ending
            apostrophes = [place for place, letter in enumerate(whole) if letter == "'"]
            # Either apostrophe may be missing; the VQA server does not know words that lack several.
            table.update({whole[:place] + whole[place + 1 :]: whole for place in apostrophes})
    return table


_CONTRACTIONS = _contractions()


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class VqaAccuracy(evaluate.Metric):
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
            reference_urls=["https://visualqa.org/evaluation.html"],
        )

    def _compute(self, predictions, references, per_example=False):
        if not len(predictions):
            raise ValueError("There are no predictions to score.")
        each = []
        for number, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
            if not len(answers):
                raise ValueError(f"Question {number} has no answers; leave it out.")
            each.append(_accuracy(normalize(prediction), [normalize(answer) for answer in answers]))
        result = {"vqa_accuracy": sum(each) / len(each)}
        return result | {"each": each} if per_example else result


def _accuracy(prediction: str, answers: list[str]) -> float:
    agreeing = answers.count(prediction)
    if len(answers) != PEOPLE:
        return float(agreeing > 0)
    # Where the person left out gave the same answer, one fewer of the others agrees.
    left_out = agreeing * min((agreeing - 1) / AGREEING, 1) + (PEOPLE - agreeing) * min(agreeing / AGREEING, 1)
    return left_out / PEOPLE


def normalize(answer: str) -> str:
    """
    Return the form in which answers are compared.

    The VQA server does not normalise the people's answers where all agree, because those of VQAv2 are normalised
    already. Here all answers are normalised, for the sake of other data.
    """
    words = _without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Drop punctuation beside a space, or if a number has commas; elsewhere punctuation becomes a space."""
    joined = _THOUSANDS.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if at_edge or joined else " ")
    return _PERIOD.sub("", cleaned)
