"""--input_size, the side of a square, or height and width; and the patches in it. Nothing here imports torch."""
import argparse
import re


def sides(size):
    """224 or [160, 320] -> (height, width) in pixels."""
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def plain(numbers):
    """What flags and checkpoints keep of one number or two: the side of a square as a number, else [height, width]."""
    height, width = (list(numbers) * 2)[:2]
    return height if height == width else [height, width]


def parse(text):
    """An argparse type: '224' -> 224, '160x320' -> [160, 320], for commands on which other words follow."""
    sizes = re.match(r'([1-9]\d*)(?:x([1-9]\d*))?$', text)
    if not sizes:
        raise argparse.ArgumentTypeError('{!r} is neither a side in pixels nor HEIGHTxWIDTH'.format(text))
    return plain([int(number) for number in sizes.groups() if number])


def patch_in_name(model):
    """Side in pixels of the patches that a model's name tells of: 16 in vit_base_patch16; None where it does not."""
    found = re.search(r'_patch(\d+)', model)
    return int(found.group(1)) if found else None


def misfit(size, patch):
    """Why patches of a side do not fill the input, with the nearest sizes that go; None where they do."""
    odd = next((length for length in sides(size) if length % patch), None)
    if odd is None:
        return None
    near = [str(length) for length in (odd // patch * patch, -(-odd // patch) * patch) if length]
    return '{} is not a multiple of the patch size {}; {} would be'.format(
        odd, patch, ' or '.join(near))


def grid_of(flags):
    """(rows, columns) of patches in a training's flags; None where they do not say, or there are none."""
    flags = flags or {}
    patch = flags.get('patch_size') or patch_in_name(str(flags.get('model')))
    size = sides(flags.get('input_size'))
    if len(size) != 2 or any(type(number) is not int or number < 1 for number in (patch, *size)):
        return None
    return size[0] // patch, size[1] // patch
