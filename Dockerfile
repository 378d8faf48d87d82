# NVIDIA's PyTorch image carries Transformer Engine and apex, built against its own torch. What it has of the packages
# below stays as it is; the rest comes in the versions of constraints.txt.
#   docker build -t megatron_bar .                        # --build-arg VLLM=vllm==0.32.0: RLVR's engine, too, in /envs/vllm
#   docker run --gpus all --ipc=host -it -v "$PWD/runs:/opt/megatron_bar/runs" megatron_bar
ARG IMAGE=nvcr.io/nvidia/pytorch:26.05-py3
FROM ${IMAGE}

# vLLM brings a torch of its own, several GB; none of the image's pins are meant for it.
ARG VLLM=
RUN if [ -n "$VLLM" ]; then python -m venv /envs/vllm && PIP_CONSTRAINT= /envs/vllm/bin/pip install --no-cache-dir "$VLLM"; fi

WORKDIR /opt/megatron_bar
COPY setup.py constraints.txt ./
COPY megatron_bar/__init__.py megatron_bar/

# The image's own PIP_CONSTRAINT pins everything it has, transformers' requirements among them, so it is replaced: its torch
# family is pinned, our pins of the same names and of torch's CUDA wheels are dropped. The last line fails the build
# if pip changed any of them all the same.
ENV PIP_CONSTRAINT=/etc/megatron_bar_constraints.txt
RUN kept='torch|torchvision|triton|pytorch-triton|transformer.engine.*|apex|flash.attn|numpy' \
 && pip list --format=freeze | grep -iE "^($kept)==" | sort > /etc/megatron_bar_kept.txt \
 && { cat /etc/megatron_bar_kept.txt; grep -viE "^(($kept|setuptools)==|nvidia-|cuda-|#)" constraints.txt; } > "$PIP_CONSTRAINT.new" \
 && mv "$PIP_CONSTRAINT.new" "$PIP_CONSTRAINT" \
 && pip install --no-cache-dir -e '.[test]' \
 && pip list --format=freeze | grep -iE "^($kept)==" | sort | diff /etc/megatron_bar_kept.txt -

COPY . .
# make's environment is the image's own.
RUN python -m venv --system-site-packages --without-pip .venv && touch .venv/.ready
CMD ["bash"]
