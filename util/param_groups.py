"""Parameter groups: what decays, and how fast each layer learns."""


def decay_groups(model, weight_decay):
    """Two groups for pre-training: no weight decay on 1-D tensors and biases (arXiv:2111.06377, appendix A.1)."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith('.bias') else decayed).append(parameter)
    return [{'params': plain, 'weight_decay': 0.}, {'params': decayed, 'weight_decay': weight_decay}]


def layer_decay_groups(model, weight_decay, layer_decay):
    """Groups for fine-tuning with layer-wise learning-rate decay (arXiv:2106.08254, appendix; arXiv:2003.10555).

    Layer 0 is the embedding, layer i + 1 is block i, depth + 1 the head; a layer's lr_scale is
    layer_decay ** (depth + 1 - layer). 1-D tensors, pos_embed and cls_token do not decay.

    Returns:
        groups with 'name', 'params', 'lr_scale' and 'weight_decay', from the embedding to the head.
    """
    depth = len(model.blocks)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name in ('pos_embed', 'cls_token')
        layer = layer_of(name, depth)
        key = 'layer_{}_{}'.format(layer, 'no_decay' if plain else 'decay')
        group = groups.setdefault(key, {'name': key, 'params': [], 'weight_decay': 0. if plain else weight_decay,
                                        'lr_scale': layer_decay ** (depth + 1 - layer)})
        group['params'].append(parameter)
    return list(groups.values())


def layer_of(name, depth):
    """Layer number of a parameter of VisionTransformer, for layer-wise decay."""
    if name in ('pos_embed', 'cls_token') or name.startswith('patch_embed.'):
        return 0
    if name.startswith('blocks.'):
        return int(name.split('.')[1]) + 1
    return depth + 1
