"""The sizes of the models: one row each, for constructors, and to know weights by their shapes."""
from collections import namedtuple

# Encoder's width, blocks and heads, side of a patch in pixels, decoder's (width, blocks, heads).
Size = namedtuple('Size', 'width depth heads patch decoder')

SIZES = {
    'nano': Size(128, 6, 4, 16, (64, 2, 2)),            # 1.4 M parameters, for lessons and tests on a CPU
    'tiny': Size(192, 12, 3, 16, (192, 4, 3)),          # ViT-Ti, with a decoder as narrow as itself; for small images
    'small': Size(384, 12, 6, 16, (256, 4, 8)),         # ViT-S, with a decoder narrower than the published one
    'base': Size(768, 12, 12, 16, (512, 8, 16)),
    'large': Size(1024, 24, 16, 16, (512, 8, 16)),
    'huge': Size(1280, 32, 16, 14, (512, 8, 16))}


def size_of(model):
    """The row of a model by its name, as mae_vit_base_patch16_dec512d8b."""
    return SIZES[model.replace('mae_', '').split('_')[1]]
