"""transformers models, loaded so that every weight which is read is one of their files.

``from_pretrained`` makes a weight that the files do not hold at random, and says so in a log at most. Here such a model
is refused, and so is one with NaN or infinities, unless nothing of what is read of the model depends on these weights:
that is found by running it, not by a list of names.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_workbench.core.errors import WorkbenchError, first_line
from fusion_workbench.system.pretrained_config import an_adapter, check_described
from fusion_workbench.system.tensors import broken_weights, not_finite

if TYPE_CHECKING:
    from torch import Tensor

Outputs = Callable[[Any], "Tensor"]
_BLOCK = re.compile(r"(.*?)\.(\d+)\.")


def load_pretrained(model_class: Any, name: str, what: str, outputs: Outputs | None = None, **options: Any) -> Any:
    """A transformers model in eval mode, from safetensors.

    Args:
        model_class: what ``from_pretrained`` is called on.
        name: folder or hub name.
        what: the model in messages, such as ``encoder 'my/folder'``.
        outputs: from the loaded model, on the CPU, everything that is ever read of it. Only run where a weight is
            missing or not finite, to find whether it is read. None: all weights are.
        options: of ``from_pretrained``.

    Returns:
        The model. Weights that its files lack and nobody reads are constants, the same every time.

    Raises:
        WorkbenchError: it cannot be loaded; or a weight that is read is missing, of another shape than the config says,
            NaN or infinite.
    """
    try:
        with quiet_transformers():
            model, info = model_class.from_pretrained(
                name,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are told below, like those that are missing
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers raises many kinds
        raise WorkbenchError(f"{what} could not be loaded from safetensors weights: {first_line(error)}") from None
    if getattr(model, "_hf_peft_config_loaded", False):
        raise WorkbenchError(an_adapter(what))
    _check(model, info, what, outputs)
    return model


def check_folder(model_class: Any, folder: Path, config: Any, what: str, make: Callable[[Any], Any]) -> None:
    """Hold the names and shapes of a folder's weights against its config, without reading the weights.

    What :func:`load_pretrained` refuses is refused here already, but for values that are no numbers: to be called
    before the work at whose end the model is needed.

    Args:
        model_class: what ``from_pretrained`` is called on.
        make: the model from a config, as :func:`system.pretrained_config.check_described` takes it.

    Raises:
        WorkbenchError: as :func:`load_pretrained`.
    """
    check_described(folder, make, config, what)
    if find_spec("accelerate") is not None:  # else transformers cannot, and it is refused when it is loaded
        load_pretrained(model_class, str(folder), what, device_map="meta", trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its table of weights, which is told here in one line, and without progress bars."""
    import transformers

    chatter: Any = transformers.logging
    level = chatter.get_verbosity()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        chatter.enable_progress_bar()


def _check(model: Any, info: Mapping[str, Any], what: str, outputs: Outputs | None) -> None:
    state: dict[str, Tensor] = model.state_dict()
    shapes = {name: (list(stored), list(wanted)) for name, stored, wanted in info["mismatched_keys"]}
    absent = [name for name in state if name in info["missing_keys"] or name in shapes]
    broken = [name for name in broken_weights(model, state) if name not in absent]
    suspects = {name: state[name] for name in state if name in {*absent, *broken}}
    _refuse_dropped(model, info["unexpected_keys"], what)
    if not suspects:
        return
    first: str | None = next(iter(suspects))
    if outputs is not None and len(absent) < len(state):
        first = _first_that_is_read(model, outputs, suspects, set(broken))
    if first is None:
        return
    if first in broken:
        raise WorkbenchError(not_finite(what, first, len(broken), len(state)))
    if first in shapes:
        stored, wanted = shapes[first]
        raise WorkbenchError(
            f"{what}: its weights hold {first} as {stored}, and by its config.json it is {wanted}"
            f"{_more(len(shapes), state, 'do not fit')}; weights and config.json are of different models."
        )
    missing = [name for name in absent if name not in shapes]
    raise WorkbenchError(
        f"{what}: its weights lack {first}{_more(len(missing), state, 'are missing')}, which would be made at random."
        f"{_cause(missing, list(info['unexpected_keys']), list(state))}"
    )


def _refuse_dropped(model: Any, unexpected: Iterable[str], what: str) -> None:
    """Raises WorkbenchError for stored weights of a map that the model has, but without them by its config.

    Other weights that a model has no place for are normal: a text tower, a head.
    """
    modules = dict(model.named_modules())
    for name in sorted(unexpected):
        parent, _, own = name.rpartition(".")
        if parent in modules and own in (places := modules[parent]._parameters) and places[own] is None:
            raise WorkbenchError(
                f"{what}: its weights hold {name}, and by its config.json the model has none there, so it would be "
                "left out; weights and config.json are of different models."
            )


def _more(count: int, state: Mapping[str, Any], verb: str) -> str:
    return f" ({count} of {len(state)} {verb})" if count > 1 else ""


# --- whether anybody reads it -----------------------------------------------------------------------------------


def _first_that_is_read(model: Any, outputs: Outputs, suspects: Mapping[str, Tensor], keep: set[str]) -> str | None:
    """The first of some weights that the outputs depend on; None: they are the same whatever stands in them.

    Found by value: with zeros in all of them, and then with NaN in the first k. Afterwards those in ``keep`` hold what
    they held, the others a constant.
    """
    import torch

    tensors = list(suspects.values())
    settled = [value.clone() if name in keep else _constant(value) for name, value in suspects.items()]

    @torch.no_grad()
    def run(poisoned: int) -> Tensor | None:
        for place, tensor in enumerate(tensors):
            tensor.fill_(_poison(tensor) if place < poisoned else 0)
        try:
            return outputs(model)
        except WorkbenchError:
            raise
        except Exception:  # whatever cannot run without it reads it
            return None

    reference = run(0)

    def same(poisoned: int) -> bool:
        other = run(poisoned)
        return reference is not None and other is not None and torch.equal(reference, other)

    try:
        if same(len(tensors)):
            return None
        low, high = 0, len(tensors)  # the same with `low` of them poisoned, another with `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if same(middle) else (low, middle)
        return list(suspects)[high - 1]
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, settled, strict=True):
                tensor.copy_(value)


def _poison(tensor: Tensor) -> float:
    """What makes itself felt wherever it is read, beside zero."""
    return math.nan if tensor.is_floating_point() or tensor.is_complex() else 1


def _constant(tensor: Tensor) -> Tensor:
    """What a weight is left as that nobody reads: zeros; or a constant that it was initialised with, as norms are."""
    import torch

    same = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
    return tensor.flatten()[0].clone() if same else torch.zeros((), dtype=tensor.dtype)


# --- why it is missing ------------------------------------------------------------------------------------------


def _cause(missing: Sequence[str], unexpected: Sequence[str], names: Sequence[str]) -> str:
    """The likely cause, as a sentence with a leading space; empty where none fits."""
    if len(missing) == len(names):
        if prefix := _prefix(missing, unexpected):
            return (
                f" They stand there under the prefix '{prefix}', as in a part cut out of a larger model such as LLaVA: "
                "take it off their names."
            )
        first = f"; the first there is {min(unexpected)}" if unexpected else ""
        return f" None of its {len(names)} names is there{first}: they are of another model, or have other names."
    if blocks := _blocks(missing, names):
        described, stored = blocks
        return f" config.json says {described} blocks, and the weights hold {stored}."
    return " The file is not whole, or of another model than config.json says."


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What stands before most of the wanted names in the file; empty where nothing does."""
    wanted, prefixes = set(missing), Counter[str]()
    for name in unexpected:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in wanted:
                prefixes[".".join(parts[:cut]) + "."] += 1
                break
    found = prefixes.most_common(1)
    return found[0][0] if found and found[0][1] > len(wanted) / 2 else ""


def _blocks(missing: Sequence[str], names: Sequence[str]) -> tuple[int, int] | None:
    """How many blocks there should be and how many are stored, where the last ones are missing as a whole."""
    wanted, absent = _by_block(names), _by_block(missing)
    for path, blocks in absent.items():
        described = max(wanted[path]) + 1
        gone = [place for place, count in blocks.items() if count == wanted[path][place]]
        stored = described - len(gone)
        if stored and gone and sorted(gone) == list(range(stored, described)):
            return described, stored
    return None


def _by_block(names: Sequence[str]) -> dict[str, Counter[int]]:
    """Lists of blocks by their place in the model: how many weights each block has."""
    lists: dict[str, Counter[int]] = {}
    for name in names:
        if match := _BLOCK.match(name):
            lists.setdefault(match[1], Counter())[int(match[2])] += 1
    return lists
