import torch
import torch.nn.functional as F

from tr_det.classification.engine.losses import Distributional


def test_the_distributional_loss_is_the_divergence_plus_the_teachers_entropy():
    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    loss = Distributional(teacher).train()
    images, logits = torch.randn(5, 4), torch.randn(5, 3, requires_grad=True)
    value = loss(logits, images, torch.zeros(5))
    wanted = teacher[0](images).softmax(1)  # without dropout
    entropy = -(wanted * wanted.log()).sum(1).mean()
    divergence = F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
    torch.testing.assert_close(value, divergence + entropy)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - wanted).detach() / 5)
