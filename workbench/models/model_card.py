"""The model card of a visual language model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_LOAD = """```python
from fusion_workbench.models.loaded import load_model

model = load_model("this/folder")
print(model.answer([["photo.jpg"]], ["What is in the picture?"])[0])
```

```sh
workbench ask --model this/folder --image photo.jpg "What is in the picture?"
```"""

_KEPT = {
    "named": "was frozen and is not in this folder: it is read by its name",
    "lora": "was taught by LoRA; the updates are in `language_model/`, in peft's format, the rest is read by its name",
    "own": "was taught something; its weights are in `language_model/`",
}


def card(config: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    adapter, encoder, language = config["adapter"], config["encoder"], config["language"]
    front: dict[str, Any] = {
        "library_name": "fusion-workbench",
        "pipeline_tag": "image-text-to-text",
        "tags": ["visual-layer-fusion", adapter["strategy"]],
    }
    named = [part["encoder"] for part in (encoder,) if part["revision"]]
    named += [language["name"]] if language["revision"] else []
    if named:  # a hub's model has a commit; a folder and an asset have none
        front["base_model"] = named
    layers = ", ".join(map(str, config["layers"]))
    rows, columns = encoder["grid"]
    norm = "which are normalised first" if adapter["projector_norm"] else "as they are"
    origin = config["origin"]
    lines = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {adapter['strategy']}, {encoder['encoder']}, {language['name']}\n",
        f"A language model that sees: hidden states {layers} of `{encoder['encoder']}` ({encoder['family']}, "
        f"{encoder['depth']} blocks) by the strategy `{adapter['strategy']}`, then a `{adapter['projector']}` "
        f"projector of the tokens, {norm}, into `{language['name']}` ({language['model_type']}, "
        f"{language['parameters']:,} parameters), which {_KEPT[language['kept']]}.\n",
        _LOAD + "\n",
        f"Images are made squares (`{config['images']['padding']}`) of {encoder['image_size']} px, a grid of "
        f"{rows} × {columns} tokens.\n",
        "## Where it comes from\n",
        f"```yaml\n{yaml.safe_dump(dict(origin), sort_keys=False)}```\n"
        if origin
        else "It says nothing of its origin.\n",
        f"Encoder fingerprint `{encoder['fingerprint'][:16]}`, workbench {config['workbench']}, "
        + ", ".join(f"{name} {number}" for name, number in config["versions"].items())
        + ".\n",
        "Encoder, language model and data keep the licences that they came with; what these say of weights trained "
        "with them holds for this folder too.\n",
    ]
    return "\n".join(lines)
