"""What stands for an image, in words and in ids, what stands for no loss, and how long an answer may become."""

from __future__ import annotations

IMAGE = "<image>"  # where an image stands in a user's words, as in LLaVA's files
IMAGE_ID = -200  # in input_ids, once where an image stands; no id of any vocabulary
IGNORE = -100  # in labels, where no loss is taken; what torch's cross-entropy leaves out

# How long an answer may become where nobody says. In a study it is language_model.max_new_tokens, which its answers
# depend on; these are of trained models.
ANSWER_TOKENS = 64  # of many questions, answered in batches
STREAM_TOKENS = 256  # of one question, whose answer can be stopped while it is read
BENCHMARK_TOKENS = 128  # under lmms-eval, of tasks that name no length
