# docker build -f docker/cuda.Dockerfile -t mae-pytorch:cuda .
# docker run --rm --gpus all --ipc=host -v FOLDER:/data -v OUTPUT:/output mae-pytorch:cuda \
#     bash test/pretrain_full_8p.sh --data_path=/data --output_dir=/output/pretrain
FROM pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
# Its Python is the system's, in which pip installs only when told that this is meant.
ENV PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /mae
COPY 2.x_requirements.txt .
RUN pip install -r 2.x_requirements.txt
COPY . .
CMD ["python3", "-m", "util.tools.check_env"]
