"""What amp makes of an optimizer at O2: it steps fp32 master weights, and the fp16 model follows."""
import torch
from _fused_adamw import flatten


class MasterWeights:
    """The state that amp keeps beside an optimizer, and the methods that it puts in place of the optimizer's own."""

    def __init__(self, optimizer, combine_grad):
        self.optimizer = optimizer
        self.fused = getattr(optimizer, 'is_npu_fused_optimizer', False)
        self.combines = combine_grad or self.fused
        self.states_combined = self.skips_next_step = False
        self._own_step, self._own_load = optimizer.step, optimizer.load_state_dict
        self._made = self._combined = False
        self._zeroed = True             # no gradient has come since zero_grad
        optimizer._amp_stash = self
        optimizer.step, optimizer.zero_grad, optimizer.load_state_dict = self.step, self.zero_grad, self.load_state_dict

    def make(self):
        """Replace the optimizer's fp16 parameters by fp32 copies, the first time that they are needed."""
        if self._made:
            return
        self._made = True
        self._halves, self._masters, self._singles = [], [], []
        for group in self.optimizer.param_groups:
            for i, parameter in enumerate(group['params']):
                if parameter.requires_grad and parameter.dtype == torch.float16:
                    group['params'][i] = master = parameter.detach().clone().float().requires_grad_()
                    self._halves.append(parameter)
                    self._masters.append(master)
                    if parameter in self.optimizer.state:
                        self.optimizer.state[master] = self.optimizer.state.pop(parameter)
                elif parameter.requires_grad:
                    self._singles.append(parameter)
        for parameter in self._masters + self._singles:
            parameter.grad = None
        self._pairs = list(zip(self._halves, self._masters))
        self._single_stash = [None] * len(self._singles)
        self.optimizer.load_state_dict(self.optimizer.state_dict())     # gives the state the masters' type

    def before_backward(self):
        """Put aside the gradients of earlier backward passes."""
        self.make()
        if self._combined:
            if not self._zeroed:
                _zero(self._half_grads)
                if self._single_grads is not None:
                    self._single_stash.copy_(self._single_grads)
                    self._single_grads.zero_()
            return
        for half in self._halves:
            half.grad = None
        for i, single in enumerate(self._singles):
            self._single_stash[i], single.grad = single.grad, None

    def after_backward(self, scaler):
        """Add the unscaled gradients to those of the masters."""
        self.make()
        if self.combines:
            self._combine()
            added = not self._zeroed
            if self._half_grads is not None:
                scaler.unscale(self._half_grads, self._master_grads, self._master_grads if added else None)
            if self._single_grads is not None:
                scaler.unscale(self._single_grads, self._single_grads, self._single_stash if added else None)
        else:
            self._unscale_one_by_one(scaler)
        self._zeroed = False

    def _unscale_one_by_one(self, scaler):
        for half, master in self._pairs:
            if half.grad is not None:
                earlier, master.grad = master.grad, torch.empty_like(master)
                scaler.unscale(half.grad, master.grad, earlier)
        for i, single in enumerate(self._singles):
            if single.grad is not None:
                scaler.unscale(single.grad, single.grad, self._single_stash[i])
            else:
                single.grad = self._single_stash[i]
            self._single_stash[i] = None

    @torch.no_grad()
    def _combine(self):
        """Move the gradients, and for a fused optimizer the masters, into one buffer each.

        As in the original, once and for all: what has no gradient now never takes part in a step.
        """
        if self._combined:
            return
        self._combined = True
        taking_part = [(half, master) for half, master in self._pairs if half.grad is not None]
        self._halves, self._masters = [half for half, _ in taking_part], [master for _, master in taking_part]
        self._singles = [single for single in self._singles if single.grad is not None]
        for master in self._masters:
            master.grad = torch.zeros_like(master)
        self._half_grads = flatten([half.grad for half in self._halves])
        self._master_grads = flatten([master.grad for master in self._masters])
        self._single_grads = flatten([single.grad for single in self._singles])
        self._single_stash = None if self._single_grads is None else torch.zeros_like(self._single_grads)
        if self.fused:
            self._master_values, self._single_values = flatten(self._masters), flatten(self._singles)

    def combined_by_group(self):
        """For each parameter group a list of (parameters, all their values, all their gradients)."""
        self._combine()
        parts = [[] for _ in self.optimizer.param_groups]
        for members, values, gradients in ((self._singles, self._single_values, self._single_grads),
                                           (self._masters, self._master_values, self._master_grads)):
            ids, start = {id(p) for p in members}, 0
            for part, group in zip(parts, self.optimizer.param_groups):
                own = [p for p in group['params'] if id(p) in ids]
                end = start + sum(p.numel() for p in own)
                if own:
                    part.append((own, values[start:end], gradients[start:end]))
                start = end
        return parts

    def step(self, closure=None):
        """In place of optimizer.step."""
        if closure is not None:
            raise RuntimeError('amp: no closure here')
        if self.skips_next_step:
            self.skips_next_step = False
            self._clear_master_grads()
            return None
        result = self._own_step()
        with torch.no_grad():
            for half, master in self._pairs:
                half.copy_(master)
        self._clear_master_grads()
        return result

    def _clear_master_grads(self):
        if self._combined:
            _zero(self._master_grads)
        elif not self.combines:
            for master in self._masters:
                master.grad = None

    def zero_grad(self):
        """In place of optimizer.zero_grad; as in the original without set_to_none."""
        self.make()
        self._zeroed = True
        if self._combined:
            for buffer in (self._half_grads, self._single_grads, self._master_grads):
                _zero(buffer)
            return
        for parameter in self._halves + self._singles:
            if parameter.grad is not None:
                parameter.grad.detach_().zero_()
        for master in self._masters:
            master.grad = None

    def load_state_dict(self, state):
        """In place of optimizer.load_state_dict."""
        self._own_load(state)
        self.states_combined = False


def _zero(buffer):
    if buffer is not None:
        buffer.zero_()
