#!/bin/sh
# Make the virtual environment $1 with the extras $2 of pyproject.toml, unless it is there and up to date.
# Up to date is a matter of content: the stamp holds a checksum of three files, the extras and the place.
# The template of a paper in another package comes along, so that the tests sweep it.
set -eu
venv=$1 extras=$2
template=examples/seventh_paper
here=$(pwd -P)
key="$(cat pyproject.toml constraints.txt "$template/pyproject.toml" | cksum) $extras $here/$venv"
stamp=$venv/.slimnb-ready

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# The newest Python the pins are known to serve first; any other from 3.11 on after that.
found=
for python in python3.13 python3.12 python3.11 python3.14 python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        found=$python
        break
    fi
    seen=${seen:-$("$python" --version 2>/dev/null || true)}
done
if [ -z "$found" ]; then
    echo "slimnb: error: needs Python 3.11 or newer, found ${seen:-none}. Install it (Debian: apt-get install python3 python3-venv)." >&2
    exit 2
fi
if ! "$found" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "slimnb: error: $found lacks its venv module. Install it (Debian: apt-get install python3-venv)." >&2
    exit 2
fi

start=$(date +%s)
rm -f "$stamp"
# An environment that was moved (its scripts name their place), or whose Python went away, is made anew.
if grep -qsF "$here/$venv" "$venv/bin/activate" && "$venv/bin/python" -c '' 2>/dev/null; then
    echo "Updating $venv" >&2
else
    echo "Setting up $venv with $("$found" --version): once, about 3 minutes and 6.5 GB with CUDA" >&2
    "$found" -m venv --clear "$venv"
fi
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --constraint constraints.txt --editable ".[$extras]" --editable "./$template"; then
    echo "slimnb: error: the packages could not be installed (see above). Check the network and disk, then repeat." >&2
    exit 6
fi
printf '%s\n' "$key" > "$stamp"
echo "Set up in $(($(date +%s) - start)) s" >&2
