# shellcheck shell=bash disable=SC2034
# The six recipes: what differs from the defaults of the Python scripts. `recipe NAME` selects one.
# Sets SCRIPT and RECIPE, and NEEDS: the public parameters that it requires beside --data_path.

# MAE pre-training of ViT-B/16. Documented: 8 devices, 400 epochs: loss 0.4107.
recipe_pretrain_base() {
    SCRIPT=main_pretrain.py
    NEEDS=()
    RECIPE=(--model mae_vit_base_patch16 --batch_size 256 --blr 3e-4 --norm_pix_loss --amp)
}

# The fast recipe of pre-training, compared in test/bench/results/fast_recipe.md. Shallow decoder, more patches hidden,
# fewer epochs: Wei et al., Masked Autoencoders are Secretly Efficient Learners, CVPR 2024 workshop ECV; see also
# arXiv:2111.06377, table 1a and figure 5. A part of the hidden patches: arXiv:2401.14391, there with cross-attention.
FAST_RECIPE=(--decoder_depth 2 --mask_ratio 0.8 --predict_ratio 0.5)
recipe_pretrain_fast() {
    recipe_pretrain_base
    RECIPE+=("${FAST_RECIPE[@]}" --warmup_epochs 20)
}

# Fine-tuning of ViT-B/16. Documented: 8 devices, 100 epochs: Acc@1 83.34. One device takes half the base rate.
recipe_finetune_base() {
    SCRIPT=main_finetune.py
    NEEDS=(finetune_pth)
    RECIPE=(--model vit_base_patch16 --batch_size 256 --blr 10e-4 --layer_decay 0.65
        --mixup 0.8 --cutmix 1.0 --dist_eval --amp)
    if ((DEVICES == 1)); then RECIPE+=(--blr 5e-4); fi
}

# Fine-tuning of ViT-L/16. Documented: 8 devices, 50 epochs: Acc@1 83.86; 16 devices: 85.97.
recipe_finetune_large() {
    SCRIPT=main_finetune.py
    NEEDS=(finetune_pth)
    RECIPE=(--model vit_large_patch16 --batch_size 128 --blr 1e-3 --layer_decay 0.65 --drop_path 0.2
        --mixup 0.8 --cutmix 1.0 --dist_eval --amp --loss_scale 2048)
}

# Linear probing of ViT-B/16, in the effective batch of the paper: 8 devices x 512 images x 4 iterations = 16384.
# Documented for the published weights: 90 epochs: Acc@1 67.8 (68.0 in the paper).
recipe_linprobe_base() {
    SCRIPT=main_linprobe.py
    NEEDS=(finetune_pth)
    RECIPE=(--model vit_base_patch16 --batch_size 512 --accum_iter 4 --blr 0.1 --weight_decay 0 --dist_eval --amp)
}

# Evaluation of a fine-tuned ViT-B/16.
recipe_eval_base() {
    SCRIPT=main_finetune.py
    NEEDS=(resume_pth)
    RECIPE=(--eval --model vit_base_patch16 --batch_size 256 --dist_eval --amp)
}
