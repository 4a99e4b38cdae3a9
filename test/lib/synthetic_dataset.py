"""Synthetic dataset of shapes and textures: python test/lib/synthetic_dataset.py FOLDER

Eight classes, four shapes in two textures each, as JPEG files in train/<class>/ and val/<class>/. Colours, position,
size, angle and background of each image are random, so that neither mean colour nor position predicts the class.
"""
import math
import os
import sys

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))

from util.config.parser import Parser, non_negative_int, positive_int
from util.errors import run
from util.tools.outputs import output_path

SIDE = 64                   # pixels of an image
SHAPES = ('cross', 'disc', 'star', 'triangle')
TEXTURES = ('checks', 'stripes')
CLASSES = ['{}_{}'.format(shape, texture) for shape in SHAPES for texture in TEXTURES]
SUPERSAMPLE = 2


def draw(class_name: str, rng: np.random.RandomState) -> Image.Image:
    """Random image of one of CLASSES: SIDE x SIDE, RGB."""
    shape, texture = class_name.split('_')
    side = SIDE * SUPERSAMPLE
    mask = np.asarray(_shape_mask(shape, side, rng), dtype=np.float32)[..., None] / 255
    image = _two_colours(_texture(texture, side, rng), rng)
    background = _two_colours(_gradient(side, rng), rng)
    image *= mask           # in place: fresh memory takes a third of the time
    image += (1 - mask) * background
    image += rng.normal(0, 6, (side, side, 1))
    return Image.fromarray(image.clip(0, 255, out=image).astype(np.uint8)).resize((SIDE, SIDE))


def _shape_mask(shape, side, rng):
    """White shape on black: a regular polygon of random size, position and angle."""
    mask = Image.new('L', (side, side))
    radius = side * rng.uniform(.32, .46)
    centre = rng.uniform(radius * .8, side - radius * .8, 2)
    points = centre + radius * _outline(shape) @ _rotation(rng.uniform(0, 2 * math.pi))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    return mask


def _outline(shape):
    """(corners, 2) of a shape within the unit circle."""
    if shape == 'cross':
        arm = [(1., -.3), (1., .3), (.3, .3)]
        return np.concatenate([np.array(arm) @ _rotation(quarter * math.pi / 2) for quarter in range(4)]) * .96
    corners = {'disc': 48, 'star': 10, 'triangle': 3}[shape]
    angles = 2 * math.pi * np.arange(corners) / corners
    lengths = np.where(np.arange(corners) % 2, .45, 1.) if shape == 'star' else np.ones(corners)
    return (lengths * np.stack([np.cos(angles), np.sin(angles)])).T


def _rotation(angle):
    """(2, 2) rotation matrix for row vectors, counter-clockwise."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _texture(texture, side, rng):
    """(side, side) in 0..1: stripes vary along one direction, checks along two."""
    rows, columns = np.ogrid[:side, :side]
    angle, period = rng.uniform(0, math.pi), side * rng.uniform(.16, .24)
    along = np.cos(2 * math.pi * (columns * math.cos(angle) + rows * math.sin(angle)) / period)
    across = np.cos(2 * math.pi * (rows * math.cos(angle) - columns * math.sin(angle)) / period)
    return (along + (across if texture == 'checks' else 0) > 0).astype(np.float32)


def _gradient(side, rng):
    """(side, side) in 0..1: a linear gradient in a random direction."""
    rows, columns = (axis / side - .5 for axis in np.ogrid[:side, :side])
    angle = rng.uniform(0, 2 * math.pi)
    return .5 + (columns * math.cos(angle) + rows * math.sin(angle)) / math.sqrt(2)


def _two_colours(weights, rng):
    """Blend two random colours of clearly different brightness by (side, side) weights."""
    dark, light = rng.uniform(0, 120, 3), rng.uniform(135, 255, 3)
    colours = weights[..., None] * (light - dark)
    colours += dark
    return colours


def write(folder: str, train: int, val: int, seed: int) -> None:
    """Draw `train` and `val` images, spread evenly over the classes."""
    for split, count in (('train', train), ('val', val)):
        rng = np.random.RandomState(seed + (split == 'val') * 7919)
        for name in CLASSES:
            os.makedirs(os.path.join(folder, split, name), exist_ok=True)
        for i in range(count):
            name = CLASSES[i % len(CLASSES)]
            draw(name, rng).save(os.path.join(folder, split, name, '{:05d}.jpg'.format(i)), quality=90)
            if (i + 1) % 500 == 0 or i + 1 == count:
                print('drawing {}: {}/{}'.format(split, i + 1, count), flush=True)


def main() -> None:
    parser = Parser(prog='synthetic_dataset.py', description=__doc__.split('\n')[0])
    parser.add_argument('folder', metavar='FOLDER', help='folder for train/ and val/; must be new or empty')
    parser.add_argument('--train', type=positive_int, default=4000, help='training images')
    parser.add_argument('--val', type=positive_int, default=800, help='validation images')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='seed of all drawings')
    args = parser.parse_args()
    with output_path(args.folder) as folder:
        write(folder, args.train, args.val, args.seed)


if __name__ == '__main__':
    run(main)
