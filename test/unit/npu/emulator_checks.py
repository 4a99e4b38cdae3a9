"""What test_emulator.py asks of the emulated NPU: python emulator_checks.py

Prints {check: what it returned, or the error that it ended with} as JSON. One process does all, since starting one
takes seconds.
"""
import io
import json
import os

import torch
import torch_npu
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader

import models_vit

CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def classifier(device):
    torch.manual_seed(0)
    return models_vit.vit_nano_patch16(img_size=32, patch_size=8, num_classes=8).to(device)


def batch(device, i=0):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(i))
    return images.to(device), torch.arange(8).to(device)


def losses(device, optimizer_class=torch.optim.AdamW, dtype=None, steps=6):
    """Of training, in half precision where `dtype` says so."""
    model = classifier(device)
    optimizer = optimizer_class(model.parameters(), lr=1e-3, weight_decay=.05)
    scaler = torch.npu.amp.GradScaler(init_scale=1024.) if dtype == torch.float16 else None
    found = []
    for i in range(steps):
        images, labels = batch(device, i % 2)
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(model(images), labels)
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    return found


@check
def training_on_the_cpu():
    return losses('cpu')


@check
def training():
    return losses('npu')


@check
def training_with_the_fused_optimizer():
    return losses('npu', torch_npu.optim.NpuFusedAdamW)


@check
def training_in_fp16():
    return losses('npu', dtype=torch.float16)


@check
def training_in_bf16():
    return losses('npu', dtype=torch.bfloat16)


@check
def outputs_and_gradients():
    """Largest difference to the CPU's, relative to the largest value of each tensor."""
    sides = []
    for device in ('cpu', 'npu'):
        model, (images, labels) = classifier(device), batch(device)
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        sides.append([logits.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)])
    # The gradient of attention's key bias is 0 but for rounding.
    return max(((a - b).abs().max() / (a.abs().max() + 1e-4)).item() for a, b in zip(*sides))


@check
def half_precision_products():
    with torch.autocast('npu', dtype=torch.float16):
        product = torch.ones(2, 2, device='npu') @ torch.ones(2, 2, device='npu')
        return [str(product.dtype), str(F.softmax(product, dim=0).dtype)]


@check
def sum_in_bf16():
    return torch.ones(2, device='npu').to(torch.bfloat16).sum().item()


@check
def overflow_of_fp16():
    torch.npu.clear_npu_overflow_flag()
    value = (torch.full((1,), 60000., dtype=torch.float16, device='npu') * 2).float().item()
    return [str(value), torch.npu.get_npu_overflow_flag(), torch.npu.utils.is_support_inf_nan()]


@check
def overflow_under_the_scaler():
    """[weight, scale] after an overflow, and after a good step."""
    weight = torch.nn.Parameter(torch.ones(1, device='npu'))
    optimizer, scaler, found = torch.optim.SGD([weight], lr=.25), torch.npu.amp.GradScaler(), []
    for factor in (60000., 1.):
        loss = (weight.half() * factor).float().sum() * (4. if factor > 1 else 1.)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        found.append([weight.item(), scaler.get_scale()])
    return found


@check
def mixing_devices():
    return (torch.ones(2, device='npu') + torch.ones(2)).sum().item()


@check
def a_number_of_the_host():
    return (torch.ones(2, device='npu') * torch.tensor(3.)).sum().item()


@check
def devices():
    torch.npu.set_device(torch.npu.device_count() - 1)
    found = [torch.npu.device_count(), torch.npu.current_device(), torch.npu.get_device_name(),
             torch.npu.is_bf16_supported()]
    torch.npu.set_device('npu:0')
    return found


@check
def one_device_too_many():
    torch.npu.set_device(torch.npu.device_count())


@check
def public_names():
    return sorted(name for name in vars(torch.npu) if not name.startswith('_'))


@check
def a_name_that_the_real_package_lacks():
    torch.npu.no_such_name()


@check
def seeds():
    """Do the seed, and the saved state, bring back dropout and noise? Does the CPU's generator stay as it was?"""
    def noise():
        return [F.dropout(torch.ones(50, device='npu')).tolist(), torch.rand(5, device='npu').tolist()]
    host = torch.get_rng_state()
    torch.npu.manual_seed_all(3)
    first = noise()
    state = torch.npu.get_rng_state()
    second = noise()
    torch.npu.set_rng_state(state)
    again = noise() == second
    torch.npu.manual_seed_all(3)
    return [again, noise() == first, first != second, torch.equal(host, torch.get_rng_state())]


@check
def saving_and_loading():
    model, file = classifier('npu'), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, map_location='cpu', weights_only=True)
    return all(value.device.type == 'cpu' and torch.equal(value, model.state_dict()[name].cpu())
               for name, value in loaded.items())


@check
def pinned_batches():
    loader = DataLoader([torch.full((3,), float(i)) for i in range(8)], batch_size=4, num_workers=2, pin_memory=True)
    return [[images.is_pinned(), images.to('npu', non_blocking=True).sum().item()] for images in loader]


def reduced(tensor):
    dist.all_reduce(tensor)
    return tensor.tolist()


@check
def sum_of_fp32():
    return reduced(torch.ones(2, device='npu'))


@check
def sum_of_float64():
    return reduced(torch.ones(2, dtype=torch.float64, device='npu'))


@check
def sum_of_uint8():
    return reduced(torch.ones(2, dtype=torch.uint8, device='npu'))


@check
def sum_of_bool():
    return reduced(torch.ones(2, dtype=torch.bool, device='npu'))


@check
def sum_on_the_cpu():
    return reduced(torch.ones(2))


@check
def fused_optimizer_of_bf16():
    weight = torch.nn.Parameter(torch.ones(2).to('npu').to(torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    torch_npu.optim.NpuFusedAdamW([weight]).step()


@check
def fused_optimizer_setting_to_none():
    torch_npu.optim.NpuFusedAdamW([torch.nn.Parameter(torch.ones(2, device='npu'))]).zero_grad(set_to_none=True)


def outcome(function):
    try:
        return function()
    except Exception as error:
        return '{}: {}'.format(type(error).__name__, str(error).split('\n')[0])


if __name__ == '__main__':
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0', RANK='0', WORLD_SIZE='1')
    dist.init_process_group('hccl', store=dist.HashStore(), rank=0, world_size=1)
    print(json.dumps({name: outcome(function) for name, function in CHECKS.items()}))
    dist.destroy_process_group()
