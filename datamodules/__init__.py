"""The store: sources of samples, transforms, the feature store and the LightningDataModule."""

import sys

try:
    from workbench.guard import claim
except ModuleNotFoundError as error:
    raise ImportError(
        f"{__file__} needs the 'workbench' beside it, but that name is {sys.modules.get('workbench')!r}; "
        "rename that one, or take its folder off the import path"
    ) from error

claim(__name__, __file__)
