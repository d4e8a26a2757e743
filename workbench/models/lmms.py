"""Our models in lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, extra ``eval``), under ``fusion_workbench``.

lmms-eval hands a model its requests: for each question a context, a function that shows the images, and how to
generate. :class:`Answering` answers them by whatever has the two methods of :class:`AnsweringModel`. Only
:func:`manifest` imports lmms-eval, which is who calls it; the class that it then makes is in :mod:`models.lmms_plugin`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from fusion_workbench.core.batching import by_length
from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.tokens import BENCHMARK_TOKENS, IMAGE

NAME = "fusion_workbench"


class AnsweringModel(Protocol):
    """A model that answers questions about images; an image is a PIL image in RGB, of any size.

    A question holds :data:`IMAGE` once for each of its images, or not at all: then they stand in front.
    """

    def answer(
        self, images: Sequence[Sequence[Any]], questions: Sequence[str], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        """What the model says to each question, its most likely words; ``batch_size`` questions at once."""
        ...

    def log_likelihoods(
        self, images: Sequence[Sequence[Any]], questions: Sequence[str], continuations: Sequence[str], batch_size: int
    ) -> list[tuple[float, bool]]:
        """Natural logarithm of the probability of each answer, and whether the most likely words are this answer."""
        ...


class Request(Protocol):
    """What we read of ``lmms_eval.api.instance.Instance``."""

    @property
    def args(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Generation:
    """How a task wants its answers: ``generation_kwargs`` of its YAML."""

    until: tuple[str, ...] = ()
    max_new_tokens: int = BENCHMARK_TOKENS

    @classmethod
    def of(cls, arguments: Mapping[str, Any], task: str, max_new_tokens: int) -> Generation:
        """Read a task's wishes; ``max_new_tokens`` where it names none.

        Raises:
            WorkbenchError: it wants what is not built, beams or sampling.
        """
        until = arguments.get("until") or ()
        if int(arguments.get("num_beams") or 1) > 1:
            raise WorkbenchError(f"task '{task}' asks for beams, which are not built; add --gen_kwargs num_beams=1.")
        if float(arguments.get("temperature") or 0.0) > 0 and arguments.get("do_sample", True):
            raise WorkbenchError(f"task '{task}' samples, which is not built; add --gen_kwargs temperature=0.")
        return cls(
            until=(until,) if isinstance(until, str) else tuple(map(str, until)),
            max_new_tokens=int(arguments.get("max_new_tokens") or max_new_tokens),
        )

    def cut(self, text: str) -> str:
        """``text`` up to the first of the stop strings."""
        return text[: min((text.index(stop) for stop in self.until if stop and stop in text), default=len(text))]


class Answering:
    """lmms-eval's three kinds of requests, answered by a model.

    Mixed into ``lmms_eval.api.model.lmms``, which gives ``task_dict`` (task → split → documents), ``cache_hook`` and
    ``rank``. Documents are shown as PIL images; a video or a sound is an error.
    """

    is_simple: ClassVar[bool] = True  # contexts and images, and not chat messages
    task_dict: dict[str, Any]
    cache_hook: Any

    def __init__(self, model: AnsweringModel, batch_size: int = 1, max_new_tokens: int = BENCHMARK_TOKENS) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """An answer to each request, in their order; answered in batches of like wishes and like length."""
        arguments = [request.args for request in requests]
        wishes = [Generation.of(wanted, task, self.max_new_tokens) for _, wanted, _, _, task, _ in arguments]
        answers = [""] * len(arguments)
        for places in self._progress(batches(arguments, wishes, self.batch_size), len(arguments)):
            images = [self._images(arguments[place][2:]) for place in places]
            questions = [
                match_image_tokens(arguments[place][0], len(shown)) for place, shown in zip(places, images, strict=True)
            ]
            texts = self.model.answer(images, questions, wishes[places[0]].max_new_tokens, self.batch_size)
            for place, text in zip(places, texts, strict=True):
                answers[place] = wishes[place].cut(text)
                self.cache_hook.add_partial("generate_until", arguments[place][:2], answers[place])
        return answers

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """For each continuation its *negative* log-likelihood, and whether the most likely words are this continuation.

        Negative, because lmms-eval takes the smallest for the model's choice (``np.argmin`` in lmms_eval/api/task.py:
        its models return losses). The delimiter in front of a continuation goes, as our models answer without one.
        """
        arguments = [request.args for request in requests]
        likelihoods = [(0.0, False)] * len(arguments)
        together = batches(arguments, [Generation()] * len(arguments), self.batch_size)
        for places in self._progress(together, len(arguments)):
            images, questions, continuations = [], [], []
            for place in places:
                context, target, *where = arguments[place]
                images.append(self._images(where) if where else [])
                document = self._document(*where[1:]) if callable(target) else None
                continuations.append((target(document) if callable(target) else str(target)).strip())
                words = context[0] if isinstance(context, list) else context
                questions.append(match_image_tokens(words, len(images[-1])))
            found = self.model.log_likelihoods(images, questions, continuations, self.batch_size)
            for place, (likelihood, greedy) in zip(places, found, strict=True):
                likelihoods[place] = (-likelihood, greedy)
        return likelihoods

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        raise WorkbenchError("tasks of several rounds are not built for fusion_workbench; leave them out of --tasks.")

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _images(self, where: Sequence[Any]) -> list[Any]:
        """The images of a document, in RGB; ``where`` is the function that shows them, document, task and split."""
        show, doc_id, task, split = where
        shown = show(self._document(doc_id, task, split)) or []
        images = []
        for visual in shown if isinstance(shown, list | tuple) else [shown]:
            if visual is None:
                continue
            if not hasattr(visual, "convert"):
                raise WorkbenchError(
                    f"task '{task}' shows a {type(visual).__name__}, and only images can be shown to this model; leave "
                    "the task out of --tasks."
                )
            images.append(visual.convert("RGB"))
        return images

    def _progress(self, parts: Iterator[list[int]], total: int) -> Iterator[list[int]]:
        from tqdm import tqdm

        with tqdm(total=total, desc="Answering", disable=getattr(self, "rank", 0) != 0) as bar:
            for part in parts:
                yield part
                bar.update(len(part))


def match_image_tokens(context: str, images: int) -> str:
    """A context whose :data:`IMAGE` words are as many as its images, or gone."""
    return context if context.count(IMAGE) in (0, images) else context.replace(IMAGE, "").strip()


def batches(asked: Sequence[tuple[Any, ...]], wishes: Sequence[Generation], size: int) -> Iterator[list[int]]:
    """Places of requests, each once, ``size`` at most together: of one task's split, of like wishes, longest first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, (request, wish) in enumerate(zip(asked, wishes, strict=True)):
        groups.setdefault((wish, *request[4:]), []).append(place)
    for places in groups.values():
        yield from by_length(places, lambda place: len(asked[place][0]), size)


def manifest() -> Any:
    """What lmms-eval's entry-point group ``lmms_eval.models`` gets of us."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path="fusion_workbench.models.lmms_plugin.FusionWorkbench")
