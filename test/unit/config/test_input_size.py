"""Non-square inputs, and patches that do not tile the input."""
import numpy as np
import pytest
import torch
from conftest import nano_vit

from util.checkpoints import load_model, weights
from util.checkpoints.checkpointer import Checkpointer
from util.checkpoints.pth_file import save
from util.config.input_flags import grid_of, parse_size
from util.config.train_flags import parse_pretrain
from util.data.lazy_image import LazyImage
from util.data.transforms import preprocessing_of
from util.errors import UserError


def vit(size):
    return nano_vit(img_size=size, num_classes=3, global_pool=True).eval()


def flags_of(size, model='vit_nano_patch16'):
    return {'model': model, 'input_size': size, 'patch_size': 8}


def test_mask_ratio_is_checked_on_the_actual_patch_grid(tmp_path):
    flags = ['--data_path', str(tmp_path), '--model', 'mae_vit_nano_patch16', '--input_size', '16', '64']
    assert parse_pretrain([*flags, '--mask_ratio', '.75']).mask_ratio == .75
    with pytest.raises(SystemExit):
        parse_pretrain([*flags, '--mask_ratio', '.8'])


def test_positions_are_interpolated_between_non_square_grids_by_the_flags_of_the_source():
    """A ramp along the rows stays a ramp, which a square or transposed source grid would break."""
    source, model = vit([32, 48]), vit([48, 32])
    ramp = torch.linspace(0, 1, 4)[:, None, None].expand(4, 6, 128).reshape(1, 24, 128)
    values = {**source.state_dict(), 'pos_embed': torch.cat([torch.zeros(1, 1, 128), ramp], dim=1)}
    weights.load_pretrained(model, values, 'x.pth', flags_of([32, 48]))
    table = model.pos_embed[0, 1:].reshape(6, 4, 128)
    assert torch.allclose(table, table[:, :1].expand(-1, 4, -1), atol=1e-6)
    assert (table[1:, 0, 0] > table[:-1, 0, 0]).all()


def test_height_and_width_swapped_fail_on_resume_and_interpolate_in_evaluation(tmp_path):
    source = vit([32, 48])
    save(str(tmp_path / 'x.pth'), {'model': source.state_dict(), 'args': flags_of([32, 48])})
    resumed, model = Checkpointer(None, str(tmp_path / 'x.pth')), vit([48, 32])
    with pytest.raises(UserError, match='4 x 6 .* 6 x 4.*--input_size'):
        resumed.load_model(model)
    resumed.load_model(model, fit_positions=True)
    assert not torch.equal(model.pos_embed, source.pos_embed)


@pytest.mark.parametrize('flags', [None, {}, {'model': 'x', 'input_size': 32}, flags_of('32'),
                                   flags_of([32, 48, 1]), flags_of([32., 48.]), flags_of(0)])
def test_invalid_flags_define_no_grid(flags):
    assert grid_of(flags) is None
    assert grid_of({'model': 'mae_vit_huge_patch14', 'input_size': 224}) == (16, 16)


@pytest.mark.parametrize('text, size', [('48', 48), ('48x48', 48), ('32x48', [32, 48])])
def test_a_square_input_size_is_stored_as_one_number(tmp_path, text, size):
    assert parse_size(text) == size
    args = parse_pretrain(['--data_path', str(tmp_path), '--patch_size', '8', '--input_size', *text.split('x')])
    assert args.input_size == size


@pytest.mark.parametrize('size', [None, 32, [48, 32]])
def test_a_classifier_of_a_non_square_input_predicts_at_that_and_other_sizes(tmp_path, size):
    save(str(tmp_path / 'x.pth'), {'model': vit([32, 48]).state_dict(), 'args': flags_of([32, 48])})
    again, flags, _ = load_model.load_classifier(str(tmp_path / 'x.pth'), size)
    transform, normalize = preprocessing_of(flags)
    assert again(normalize(transform(LazyImage(np.zeros((60, 80, 3), np.uint8)))[None])).shape == (1, 3)
    assert flags['input_size'] == (size or [32, 48])
