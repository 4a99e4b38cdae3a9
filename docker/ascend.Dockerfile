# docker build -f docker/ascend.Dockerfile -t mae-pytorch:ascend .
# For the 910B; another chip: --build-arg BASE=... The driver is the host's, and Ascend Docker Runtime mounts it:
# docker run --rm --runtime=ascend -e ASCEND_VISIBLE_DEVICES=0-7 --ipc=host -v FOLDER:/data -v OUTPUT:/output \
#     mae-pytorch:ascend bash test/pretrain_full_8p.sh --data_path=/data --output_dir=/output/pretrain
# CANN 9.1.0, torch_npu 2.11.0 and torch 2.11.0 belong together: see torch_npu's table of versions before changing one.
ARG BASE=quay.io/ascend/cann:9.1.0-910b-ubuntu22.04-py3.11
# hadolint ignore=DL3006
FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1
WORKDIR /mae
COPY 2.x_requirements.txt .
# PyTorch's CPU index, as torch_npu's guide has it: torch of the usual index is a CUDA build, gigabytes larger, beside
# which torch_npu 2.11.0.post3, 2.12.0.post3, 2.13.0 and 2.14.0 abort. torch_npu imports yaml and setuptools.
RUN pip install torch==2.11.0 torchvision==0.26.0 --index-url https://download.pytorch.org/whl/cpu && \
    pip install pyyaml==6.0.3 setuptools==80.9.0 && \
    pip install --no-deps torch-npu==2.11.0 && \
    pip install -r 2.x_requirements.txt
COPY . .
CMD ["python", "-m", "util.tools.check_env"]
