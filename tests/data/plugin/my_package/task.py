import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy

from fusion_workbench.modules.tasks import Task, register_task
from fusion_workbench.modules.tasks.heads import AttentivePooling


@register_task("side")
class Side(Task):
    title = "which half of the image is the brighter one"
    needs = ("side",)  # of the targets that a source gives

    def head(self, width, hidden):
        return AttentivePooling(width, hidden, self.classes)

    def loss(self, logits, batch):
        return F.cross_entropy(logits.float(), batch["side"])

    def scores(self, logits, batch):  # of each example, and how many items it counts for
        return (logits.argmax(-1) == batch["side"]).float(), torch.ones_like(batch["side"])

    def metric(self):
        return MulticlassAccuracy(self.classes, average="micro")

    def update(self, metric, logits, batch):
        metric.update(logits.argmax(-1), batch["side"])
