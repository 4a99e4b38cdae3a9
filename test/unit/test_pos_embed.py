"""Position tables and their interpolation."""
import math

import pytest
import torch

from util.pos_embed import resize_positions, sincos_2d


def test_the_table_holds_sines_then_cosines_of_column_then_row():
    table = sincos_2d(8, (2, 3))
    assert table.shape == (1, 7, 8)
    row, column = 1, 2
    half = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (column, row)]
    assert table[0, 1 + row * 3 + column].tolist() == pytest.approx(half[0] + half[1], abs=1e-6)


def test_the_class_token_has_no_position():
    assert sincos_2d(16, (3, 3))[0, 0].abs().sum() == 0


def test_a_width_that_is_no_multiple_of_4_is_refused():
    with pytest.raises(ValueError, match='multiple of 4'):
        sincos_2d(6, (2, 2))


def test_interpolation_keeps_the_class_row_and_a_linear_ramp():
    rows = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    table = torch.cat([torch.full((1, 1, 1), 5.), rows], dim=1)
    resized = resize_positions(table, (8, 8), (16, 16))
    assert resized.shape == (1, 257, 1)
    assert resized[0, 0] == 5
    inner = resized[0, 1:, 0].reshape(16, 16)[4:12, 0]
    assert torch.allclose(inner[2:] - inner[:-2], torch.full((6,), 1 / 7), atol=1e-5)


def test_interpolation_to_the_same_grid_changes_nothing():
    table = torch.randn(1, 10, 4)
    assert resize_positions(table, (3, 3), (3, 3)) is table


def test_interpolation_takes_rows_and_columns_apart():
    assert resize_positions(torch.randn(1, 1 + 16, 4), (4, 4), (2, 8)).shape == (1, 17, 4)
