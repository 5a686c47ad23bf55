from types import SimpleNamespace

import torch

from tr_det.export.readback import _differences


def test_images_that_a_program_refuses_are_faults_of_the_proof():
    def guarded(images):
        assert images.shape[2] > 1, "Guard failed: a side of one pixel"
        return images

    subject = SimpleNamespace(net=lambda images: images, names=("logits",))
    images = [torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 2)]
    (fault,) = _differences(subject, guarded, images)
    assert "(1, 1, 1, 1) is refused: Guard failed" in fault
