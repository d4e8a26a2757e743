"""Two numbers that stand where a token's id would: what prepares text and what reads it agree on them here."""

from __future__ import annotations

IMAGE_ID = -200  # in input_ids, once where an image stands; no id of any vocabulary
IGNORE = -100  # in labels, where no loss is taken; what torch's cross-entropy leaves out
