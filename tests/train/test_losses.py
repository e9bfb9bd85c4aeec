import torch

from fuse_search.train.losses import TaskLosses
from tiny import rows, spec


def test_every_task_has_the_loss_of_its_type_in_units_of_the_training_rows():
    data = rows()
    tasks = {"left": {"type": "classification"}, "age": {"type": "regression"}}
    losses = TaskLosses(spec(tasks=tasks), data)
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    outputs = {"age": torch.tensor([30.0, 36.0]), "left": logits}
    targets = {"age": torch.tensor([32.0, 32.0]), "left": torch.tensor([0, 2])}
    found = losses(outputs, targets, 0.3)
    assert list(found) == ["left", "age"]
    variance = data.targets["age"].values[data.splits["train"]].var()
    torch.testing.assert_close(found["age"], (4 + 16) / 2 / variance)
    log_p = logits.log_softmax(1)
    smoothed = 0.7 * (log_p[0, 0] + log_p[1, 2]) / 2 + 0.1 * log_p.sum() / 2
    torch.testing.assert_close(found["left"], -smoothed)
