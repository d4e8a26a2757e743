from fusion_workbench.modules.answers import AnswerMetric, register_metric


@register_metric("first_word")
class FirstWord(AnswerMetric):
    title = "first word, in any case"
    source = "my own"

    def score(self, prediction, answers):
        first = prediction.casefold().split()[:1]
        return float(any(first == answer.casefold().split()[:1] for answer in answers))
