"""apex.amp at O2, with the parameters that the program passes."""
import contextlib
import sys

import torch

_scaler = []


class LossScaler:
    """A dynamic or a static loss scale.

    A static scale looks for no overflow: it never skips a step. A dynamic one counts backward passes, not steps.
    """

    def __init__(self, loss_scale):
        self.dynamic, self.unskipped, self.overflow = loss_scale == 'dynamic', 0, False
        self.loss_scale = 2. ** 16 if self.dynamic else float(loss_scale)
        npu = getattr(sys.modules.get('torch_npu'), 'npu', None)
        self._saturating = npu if npu and self.dynamic and not npu.utils.is_support_inf_nan() else None

    def before_backward(self):
        """Forget earlier overflows of a chip that only tells them by its flag."""
        if self._saturating:
            self._saturating.clear_npu_overflow_flag()

    def after_backward(self, gradients):
        """Look for an overflow; on a saturating chip where one process overflowed, all of them did."""
        if self._saturating:
            count = torch.tensor([float(self._saturating.get_npu_overflow_flag())]).to('npu')
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(count)
            self.overflow = count.item() != 0
        else:
            self.overflow = self.dynamic and not all(torch.isfinite(gradient).all() for gradient in gradients)

    def update_scale(self):
        """Adapt the scale to what this backward showed."""
        self.unskipped = 0 if self.overflow else self.unskipped + 1
        if self.overflow:
            self.loss_scale /= 2


class MasterWeights:
    """fp32 copies of an optimizer's fp16 parameters, which it steps in their place; the model follows.

    As in the original, whose gradients lie in one buffer, what has no gradient at the first backward never takes part,
    and a gradient is read where it was then.
    """

    def __init__(self, optimizer):
        self._optimizer, self._own_step = optimizer, optimizer.step
        self._pairs, self.gradients, self.skips_next_step = [], None, False
        optimizer._amp_stash, optimizer.step, optimizer.zero_grad = self, self.step, self.zero_grad

    def make(self):
        """Replace the parameters, the first time that it is needed."""
        for group in self._optimizer.param_groups if not self._pairs else ():
            for i, half in enumerate(group['params']):
                assert half.dtype == torch.float16 and half.requires_grad, 'the stand-in takes nothing else'
                group['params'][i] = master = half.detach().clone().float().requires_grad_()
                self._pairs.append((half, master))

    @torch.no_grad()
    def after_backward(self, scaler):
        """Add the unscaled gradients to those of the masters, unless this backward has overflowed."""
        if self.gradients is None:
            self._pairs = [(half, master) for half, master in self._pairs if half.grad is not None]
            self.gradients = [half.grad for half, _ in self._pairs]
            for _, master in self._pairs:
                master.grad = torch.zeros_like(master)
        scaler.after_backward(self.gradients)
        for (_, master), gradient in zip(self._pairs, self.gradients):
            if not scaler.overflow:
                master.grad.add_(gradient.float() / scaler.loss_scale)
            gradient.zero_()
        self.skips_next_step |= scaler.overflow

    def step(self):
        """In place of optimizer.step."""
        if not self.skips_next_step:
            self._own_step()
            with torch.no_grad():
                for half, master in self._pairs:
                    half.copy_(master)
        self.skips_next_step = False

    def zero_grad(self):
        """In place of optimizer.zero_grad; as in the original without set_to_none."""
        self.make()
        for _, master in self._pairs:
            if master.grad is not None:
                master.grad.zero_()


def initialize(models, optimizers=None, opt_level='O1', loss_scale=None, verbosity=1, combine_grad=None):
    """Convert a model and its optimizer in place, and return them."""
    assert opt_level == 'O2' and (optimizers is None or combine_grad), 'the stand-in knows nothing else'
    _convert(models)
    _scaler[:] = [LossScaler('dynamic' if loss_scale is None else loss_scale)]
    if optimizers is None:
        return models
    MasterWeights(optimizers)
    return models, optimizers


def _convert(model):
    """fp16 inside, fp32 outside."""
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    forward = model.forward

    def half_forward(*args, **kwargs):
        return _cast(forward(*_cast(args, torch.float16), **_cast(kwargs, torch.float16)), torch.float32)
    model.forward = half_forward


def _cast(value, dtype):
    """`value` with its floating-point tensors of another type."""
    if torch.is_tensor(value):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(item, dtype) for name, item in value.items()}
    return type(value)(_cast(item, dtype) for item in value) if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def scale_loss(loss, optimizer):
    """Gives the scaled loss; its gradients are in the masters, unscaled, when the context ends."""
    scaler, = _scaler
    optimizer._amp_stash.make()
    scaler.before_backward()
    yield loss.float() * scaler.loss_scale
    optimizer._amp_stash.after_backward(scaler)
    scaler.update_scale()


def state_dict():
    """The scale and how long it has held."""
    scaler, = _scaler
    return {'loss_scaler0': {'loss_scale': scaler.loss_scale, 'unskipped': scaler.unskipped}}


def load_state_dict(state_dict):
    """Restore what state_dict gave."""
    scaler, (saved,) = *_scaler, state_dict.values()
    scaler.loss_scale, scaler.unskipped = saved['loss_scale'], saved['unskipped']
