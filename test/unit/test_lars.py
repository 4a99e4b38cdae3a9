"""LARS against its formula."""
import numpy as np
import torch

from util.lars import LARS


def by_formula(weights, gradients, lr, weight_decay=0., momentum=.9, trust=.001):
    """The weights after a step for each of `gradients`, in numpy and float64."""
    w, m = weights.astype(np.float64), np.zeros(weights.shape)
    for g in gradients:
        d = g.astype(np.float64)
        if w.ndim > 1:
            d = d + weight_decay * w
            sizes = np.sqrt((w ** 2).sum()), np.sqrt((d ** 2).sum())
            if min(sizes) > 0:
                d = d * trust * sizes[0] / sizes[1]
        m = momentum * m + d
        w = w - lr * m
    return w


def after_steps(weights, gradients, **options):
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimizer = LARS([parameter], **options)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter.detach().numpy()


def drawn(*shape):
    rng = np.random.RandomState(0)
    return rng.randn(*shape).astype(np.float32), [rng.randn(*shape).astype(np.float32) for _ in range(3)]


def test_three_steps_follow_the_formula():
    for options in ({'lr': 6.4}, {'lr': 30., 'weight_decay': .1, 'momentum': .5, 'trust_coefficient': .02}):
        for shape in ((8, 16), (16,)):
            weights, gradients = drawn(*shape)
            named = {'trust' if name == 'trust_coefficient' else name: value for name, value in options.items()}
            assert np.allclose(after_steps(weights, gradients, **options), by_formula(weights, gradients, **named),
                               rtol=1e-4, atol=1e-5)


def test_a_bias_takes_the_plain_step_without_decay():
    weights, gradients = drawn(16)
    moved = after_steps(weights, gradients[:1], lr=.5, weight_decay=.3)
    assert np.allclose(moved, weights - .5 * gradients[0], atol=1e-6)


def test_weights_or_gradients_of_zero_are_not_scaled():
    weights, gradients = drawn(8, 16)
    assert np.allclose(after_steps(0 * weights, gradients[:1], lr=1.), -gradients[0])
    assert np.array_equal(after_steps(weights, [0 * weights], lr=1.), weights)


def test_what_has_no_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([parameter], lr=1.)
    assert optimizer.step(lambda: 7) == 7 and torch.equal(parameter.detach(), torch.ones(2, 2))


def test_momentum_survives_a_state_dict():
    weights, gradients = drawn(8, 16)
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    for gradient in gradients:
        optimizer, state = LARS([parameter], lr=6.4), locals().get('state')
        if state:
            optimizer.load_state_dict(state)
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        state = optimizer.state_dict()
    assert np.array_equal(parameter.detach().numpy(), after_steps(weights, gradients, lr=6.4))
