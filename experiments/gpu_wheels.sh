#!/usr/bin/env bash
# Wheels for a GPU machine without a package index that has Python 3.12, jax, numpy and torch: unpacked by gpu_setup.sh.
set -euo pipefail
mkdir -p .whl
packages=(
  flax optax orbax-checkpoint chex tensorboardX ml_collections tensorstore msgpack treescope etils absl-py toolz
  protobuf simplejson humanize jaxtyping wadler_lindig einops tokenizers huggingface_hub tqdm matplotlib contourpy
  cycler fonttools kiwisolver pyparsing python-dateutil six pillow PyYAML rich Pygments markdown-it-py mdurl
  typing_extensions packaging fsspec aiofiles psutil prometheus_client zipp uvloop
)
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .whl --python-version 3.12 --implementation cp \
  --abi cp312 --abi abi3 --abi none --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${packages[@]}"
du -sh .whl
