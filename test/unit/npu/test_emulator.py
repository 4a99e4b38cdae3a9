"""The emulated NPU computes as the CPU does, and refuses what the real one refuses."""
import json
import sys
from pathlib import Path

import pytest
from conftest import execute

from .conftest import FOLDER, WITH_STAND_INS, require_emulator

require_emulator()

# What a training program may use of torch.npu in every release since 2.1, and what PyTorch itself asks a device for.
CONTRACT = {
    'amp', 'utils', 'is_available', 'is_initialized', 'device_count', 'set_device', 'current_device', 'get_device_name',
    'synchronize', 'manual_seed', 'manual_seed_all', 'memory_allocated', 'max_memory_allocated',
    'reset_peak_memory_stats', 'empty_cache', 'get_rng_state', 'set_rng_state', 'get_rng_state_all',
    'set_rng_state_all', 'is_bf16_supported', 'get_npu_overflow_flag', 'clear_npu_overflow_flag',
    'get_amp_supported_dtype', 'device', 'stream', 'Stream', 'current_stream'}
IMPORTED = {'resource', 'torch'}        # by the module itself


def checks(chip, **environ):
    """{check of emulator_checks.py: its outcome}."""
    run = execute([sys.executable, Path(FOLDER) / 'emulator_checks.py'], EMULATED_NPU_CHIP=chip, **WITH_STAND_INS,
                  **environ)
    assert run.status == 0, run.output
    return json.loads(run.output.splitlines()[-1])


@pytest.fixture(scope='module')
def a():
    """On a machine of eight 910A."""
    return checks('910A')


@pytest.fixture(scope='module')
def b():
    """Two of a machine's eight 910B are visible."""
    return checks('910B', ASCEND_RT_VISIBLE_DEVICES='3,5')


def test_outputs_and_gradients_of_a_vit_agree_with_the_cpu(a):
    assert a['outputs_and_gradients'] < 1e-4


def test_training_agrees_with_the_cpu(a):
    assert a['training'] == pytest.approx(a['training_on_the_cpu'], rel=1e-5)
    assert a['training'][-1] < a['training'][0]


def test_the_fused_optimizer_has_the_numbers_of_adamw(a):
    assert a['training_with_the_fused_optimizer'] == pytest.approx(a['training'], rel=1e-5)


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
def test_training_in_half_precision_follows_fp32(a, b, dtype):
    found = {'fp16': a, 'bf16': b}[dtype]['training_in_' + dtype]
    assert found == pytest.approx(a['training'], rel=.02) and found != a['training']


def test_autocast_multiplies_in_fp16_and_takes_the_softmax_in_fp32(a):
    assert a['half_precision_products'] == ['torch.float16', 'torch.float32']


def test_a_910a_computes_no_bf16(a, b):
    assert a['sum_in_bf16'] == 'RuntimeError: Ascend910A computes no bf16' and b['sum_in_bf16'] == 2
    assert a['training_in_bf16'] == a['training']       # autocast warns, and does nothing
    assert (a['devices'][3], b['devices'][3]) == (False, True)


def test_a_910a_saturates_in_fp16_and_raises_its_flag(a):
    assert a['overflow_of_fp16'] == ['65504.0', True, False]


def test_a_910b_gives_inf_and_has_no_flag(b):
    assert b['overflow_of_fp16'] == ['inf', False, True]


@pytest.mark.parametrize('chip', ['a', 'b'])
def test_the_scaler_skips_a_step_that_overflows_and_halves_the_scale(request, chip):
    assert request.getfixturevalue(chip)['overflow_under_the_scaler'] == [[1., 2. ** 15], [.75, 2. ** 15]]


def test_tensors_of_cpu_and_npu_do_not_mix(a):
    assert a['mixing_devices'].startswith('RuntimeError: Expected all tensors to be on the same device')
    assert a['a_number_of_the_host'] == 6


def test_a_process_sees_the_devices_that_the_environment_names(a, b):
    assert a['devices'] == [8, 7, 'Ascend910A', False] and b['devices'] == [2, 1, 'Ascend910B1', True]
    assert a['one_device_too_many'] == 'RuntimeError: npu:8 does not exist: 8 devices are visible'


def test_no_visible_device_means_no_npu():
    code = 'import torch, torch_npu; print(torch.npu.is_available(), torch.npu.device_count())'
    run = execute([sys.executable, '-c', code], ASCEND_RT_VISIBLE_DEVICES='', **WITH_STAND_INS)
    assert run.output == 'False 0\n'


def test_names_outside_the_contract_are_absent(a):
    assert set(a['public_names']) - IMPORTED == CONTRACT
    assert a['a_name_that_the_real_package_lacks'].startswith('AttributeError')


def test_seeds_and_saved_states_bring_noise_back(a):
    assert a['seeds'] == [True] * 4


def test_what_is_saved_loads_on_a_machine_without_npus(a):
    assert a['saving_and_loading'] is True


def test_batches_can_be_pinned(a):
    assert a['pinned_batches'] == [[True, 18.], [True, 66.]]


@pytest.mark.parametrize('dtype', ['float64', 'uint8', 'bool'])
def test_hccl_adds_up_no(a, dtype):
    assert a['sum_of_' + dtype] == 'RuntimeError: HCCL AllReduce: Unsupported data type torch.' + dtype


def test_hccl_takes_tensors_of_the_npu_only(a):
    assert a['sum_of_fp32'] == [1, 1]
    assert a['sum_on_the_cpu'].startswith('RuntimeError: No backend type associated with device type cpu')


def test_the_fused_optimizer_refuses_what_the_real_one_refuses(b):
    assert b['fused_optimizer_of_bf16'].startswith('TypeError')
    assert b['fused_optimizer_setting_to_none'].startswith('ValueError')
