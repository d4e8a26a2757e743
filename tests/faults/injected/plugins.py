"""Strategies of others that raise, give nonsense or meddle, beside a sound neighbour in the same bank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from injected.harness import Fault

WHERE = ("build", "train", "late", "evaluate")


def faults() -> Iterator[Fault]:
    """What a plug-in may do, and where."""
    for where in WHERE:
        for name in ("RuntimeError", "ValueError", "MemoryError", "KeyError", "SystemExit", "out of memory"):
            yield _fault(f"{name} in {where}", where, name)
    for name in ("a wrong number of tokens", "wrong channels", "None", "a list", "not finite", "infinite", "no axes"):
        yield _fault(name, "train", name)
    for name in ("default dtype", "seed", "no gradients", "threads"):
        yield _fault(f"sets {name}", "train", name)


def _fault(title: str, where: str, what: str) -> Fault:
    def inject(folder: Path) -> None:
        path = folder / "study.yaml"
        path.write_text(path.read_text().replace("strategies: [", "strategies: [{name: spoiled}, "))

    return Fault(
        "plug-ins",
        title,
        inject,
        ("sweep {s} name=plugged -w {w} -q", "report plugged -w {w}"),
        fresh=True,
        within=lambda: register(where, what),
        statuses=(3,),
    )


def register(where: str, what: str) -> None:
    """Register the strategy ``spoiled``: an average that fails as told."""
    import torch

    from fusion_workbench.modules.fusion.average import Average, AverageOptions
    from fusion_workbench.modules.fusion.base import register_strategy

    errors: dict[str, BaseException] = {
        "KeyError": KeyError("of the plug-in"),
        "MemoryError": MemoryError("of the plug-in"),
        "RuntimeError": RuntimeError("of the plug-in"),
        "ValueError": ValueError("of the plug-in"),
        "SystemExit": SystemExit(0),
        "out of memory": torch.OutOfMemoryError("CUDA out of memory (a test)"),
    }
    meddling: dict[str, Callable[[], object]] = {
        "default dtype": lambda: torch.set_default_dtype(torch.float64),
        "seed": lambda: torch.manual_seed(1),
        "no gradients": lambda: torch.set_grad_enabled(False),
        "threads": lambda: torch.set_num_threads(2),
    }
    spoil: dict[str, Callable[[torch.Tensor], object]] = {
        "a wrong number of tokens": lambda x: x[:, :-1],
        "wrong channels": lambda x: x[..., :-1],
        "None": lambda x: None,
        "a list": lambda x: [x],
        "not finite": lambda x: x * float("nan"),
        "infinite": lambda x: x * float("inf"),
        "no axes": lambda x: x.sum(),
    }
    steps = [0]

    def act(x: torch.Tensor) -> object:
        if what in errors:
            raise errors[what]
        if what in meddling:
            meddling[what]()
        return spoil[what](x) if what in spoil else x

    @register_strategy("spoiled", options=AverageOptions, uses_levels=True, title="spoiled")
    class Spoiled(Average):
        """An average that fails as told."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            if where == "build" and torch.zeros(1).device.type != "meta":
                act(torch.zeros(1, 4, 4))

        def forward(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            tokens = super().forward(*args, **kwargs)  # type: ignore[arg-type]
            if tokens.is_meta:
                return tokens
            steps[0] += self.training
            now = {"build": False, "train": self.training, "late": self.training and steps[0] > 2}
            return act(tokens) if now.get(where, not self.training) else tokens
