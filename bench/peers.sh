#!/usr/bin/env bash
# Make a virtual environment of its own for every peer that bench/step.py measures: bench/peers.sh DIR
# TORCH_INDEX may name the package index to take torch from, e.g. https://download.pytorch.org/whl/cpu
set -euo pipefail
folder=${1:?usage: bench/peers.sh DIR}
torch=${TORCH:-torch==2.13.0}
mkdir -p "$folder"
while read -r name requirements; do
  [ -x "$folder/$name/bin/python" ] && continue
  python3 -m venv "$folder/$name"
  "$folder/$name/bin/pip" install --quiet "$torch" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
  "$folder/$name/bin/pip" install --quiet "$torch" $requirements
  "$folder/$name/bin/pip" uninstall --quiet --yes torchvision  # a build for another torch breaks imports; unused here
done <<'PEERS'
sae-lens sae-lens==6.54.12
dictionary_learning dictionary-learning==0.1.0
sparsify eai-sparsify==1.3.3
llamascopium llamascopium==2.0.0b34 transformer-lens==3.2.1
PEERS
