"""How captions and answers are written, unless the caller asks otherwise."""

# Captions and short answers; what is longer is cut, and a model that writes so much has not stopped.
MAX_CAPTION_TOKENS = 32
MAX_ANSWER_TOKENS = 16
# The likeliest caption or answer as a whole (our choice; the paper does not say how it decodes). Greedy words name
# fewer pictures, and so do beams scored by the mean over their tokens (transformers' default, 1.0), which favours long
# names.
NUM_BEAMS = 5
LENGTH_PENALTY = 0.0
