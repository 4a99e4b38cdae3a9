# docker build -f docker/cpu.Dockerfile -t mae-pytorch:cpu .
# On x86-64 pip's usual index has a torch with CUDA's libraries; --build-arg PIP_INDEX_URL=... names one of CPU builds.
FROM python:3.11-slim
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1
RUN pip install torch==2.11.0 torchvision==0.26.0
WORKDIR /mae
COPY 2.x_requirements.txt .
RUN unset PIP_INDEX_URL && pip install -r 2.x_requirements.txt
COPY . .
CMD ["bash", "test/demo.sh"]
