#!/bin/sh
# Runs the commands that need no PyTorch, in an environment without it: commands.sh BIN AUDIO
set -eu
bin=$1 audio=$2
DYMN_CACHE=$(mktemp -d)
export DYMN_CACHE
"$bin"/python -c 'import importlib.util as u; assert u.find_spec("torch") is None, "PyTorch is installed"'
"$bin"/dymn --version
"$bin"/dymn tag "$audio" --model dymn04_open --top-k 3
"$bin"/dymn events "$audio/dog.ogg" --model dymn04_open
"$bin"/dymn embed "$audio/dog.ogg" --model dymn04_open --output "$DYMN_CACHE/dog.npy"
"$bin"/dymn models > "$DYMN_CACHE/models"
"$bin"/dymn convert dymn04_open "$DYMN_CACHE/copy.safetensors"
"$bin"/dymn tag "$audio/dog.ogg" --model "$DYMN_CACHE/copy.safetensors" --top-k 1
"$bin"/dymn profile dymn10_as > "$DYMN_CACHE/counts"
"$bin"/dymn serve --help > "$DYMN_CACHE/help"
"$bin"/dymn train --help > "$DYMN_CACHE/help"
if "$bin"/dymn explain "$audio/dog.ogg" --model dymn04_open --output "$DYMN_CACHE/page.html" 2> "$DYMN_CACHE/errors"; then
    echo "dymn explain works without PyTorch; commands.sh expects an error" >&2
    exit 1
fi
grep -q "dymn\[torch" "$DYMN_CACHE/errors" || { cat "$DYMN_CACHE/errors" >&2; exit 1; }
"$bin"/python -c 'import dymn
try: dymn.create_model
except ImportError as error: assert "dymn[torch" in str(error), error
else: raise SystemExit("dymn.create_model is there without PyTorch")'
rm -r "$DYMN_CACHE"
