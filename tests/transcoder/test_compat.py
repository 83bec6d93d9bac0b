"""The private names of PyTorch that are used exist in the installed release, and do what our comments say."""

import torch

from transcoder.compat import bag_products, fused_adam_


def test_bag_products_are_row_products() -> None:
    generator = torch.Generator().manual_seed(0)
    grad_sums = torch.randn(3, 8, generator=generator)
    table = torch.randn(5, 8, generator=generator)
    features = torch.tensor([4, 0, 1, 1], dtype=torch.int32)
    bag = torch.tensor([0, 0, 2, 2], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 2], dtype=torch.int32)
    found = bag_products(grad_sums, table, features=features, offsets=offsets, bag=bag)
    torch.testing.assert_close(found, (grad_sums[bag.long()] * table[features.long()]).sum(dim=1))


def test_a_step_of_adam_is_its_definition_and_a_bad_one_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    x, gradient, first = (torch.randn(7, generator=generator) for _ in range(3))
    second = torch.rand(7, generator=generator)
    beta1, beta2, lr, epsilon, step = 0.9, 0.99, 0.1, 1e-8, 4
    g = gradient.double() / 2
    m = beta1 * first.double() + (1 - beta1) * g
    v = beta2 * second.double() + (1 - beta2) * g.square()
    corrected = (m / (1 - beta1 ** (step + 1))) / ((v / (1 - beta2 ** (step + 1))).sqrt() + epsilon)
    expected = x.double() - lr * corrected

    for is_bad in (1.0, 0.0):
        before = x.clone()
        fused_adam_(
            [x],
            [gradient.clone()],
            first=[first],
            second=[second],
            step=step,
            divisor=torch.tensor(2.0),
            is_bad=torch.tensor(is_bad),
            decoupled=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=0.0,
            epsilon=epsilon,
        )
        if is_bad:
            assert torch.equal(x, before)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-6)
