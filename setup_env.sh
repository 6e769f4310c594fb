#!/usr/bin/env bash
# Makes the Python environment .venv next to this file. `bash setup_env.sh --help` tells more.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$here/.venv
requirements=$here/configs/requirements
made_for=$venv/textregion-made-for # written when .venv is made: Python version, place, torch choice
stamp=$venv/textregion-stamp       # written when all is installed: a hash of that and of the requirement files
no_browser=$venv/textregion-no-browser # written when a browser could not be installed: not to be tried on every run
steps=7

usage() {
  cat <<'HELP'
usage: bash setup_env.sh [--help]

Makes the Python environment .venv next to this script and installs the exact versions of
configs/requirements/*.txt into it. Needs Python 3.10 to 3.13 with its venv module, the package
registry your pip is set up for, and about 7 GB of disk (2 GB with a CPU-only torch). No root.

The test of the web page drives a Chromium or Chrome. Where there is none, root gets Debian's
package chromium through apt-get; others are told how to get one. Without one that test is skipped.

Run it again at any time: it returns at once when nothing has changed, installs what has changed
otherwise, and carries on after an interrupted run.

Environment variables:
  PYTHON            the Python to use, a command or a path. Unset: the first that fits of python3,
                    python3.11, python3.12, python3.13, python3.10.
  TEXTREGION_TORCH  which torch to use.
                    pinned       the versions of configs/requirements/torch.txt
                    system       the torch and torchvision that PYTHON can import already
                    other text   arguments for `pip install`, split at blanks; for another CUDA
                                 version or a CPU-only build, for instance:
                                 "torch==2.11.0 torchvision==0.26.0 --index-url <your index>"
                    unset        what .venv was made with; pinned, if there is no .venv yet
                    Any torch from 2.5.1 on, with the torchvision of the same release.
  TEXTREGION_BROWSER  the browser for the test, a command or a path. Unset: the first of chromium,
                    chromium-browser, google-chrome. none: none, and none is installed.

Exit code: 0 when .venv is ready; 2, with one line that says what to do, when it is not.
HELP
}

fail() {
  echo "setup_env.sh: $1" >&2
  exit 2
}

step=0
say_step() {
  step=$((step + 1))
  echo "[$step/$steps] $1"
}

# Why the Python "$1" cannot be used, in a few words; nothing if it can.
python_problem() {
  if ! command -v "$1" >/dev/null 2>&1; then
    echo "was not found"
  elif ! "$1" -c '' >/dev/null 2>&1; then
    echo "does not run"
  elif ! "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "is Python $(python_version "$1")"
  elif ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    echo "has no venv module"
  fi
}

# Sets `python`, to the first candidate without a problem.
find_python() {
  local problem problems="" remedy
  local candidates=(python3 python3.11 python3.12 python3.13 python3.10)
  if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
  elif venv_fits "$venv/bin/python"; then
    # Keep the Python of a .venv that fits, so that PYTHON need not be repeated.
    candidates=("$venv/bin/python" "${candidates[@]}")
  fi
  for python in "${candidates[@]}"; do
    problem=$(python_problem "$python")
    [ -n "$problem" ] || return 0
    problems="$problems$python $problem, "
  done
  case "$problems" in
    *"no venv module"*) remedy="install the venv module (Debian, Ubuntu: package python3-venv), or set PYTHON" ;;
    *) remedy="set PYTHON to one of those" ;;
  esac
  fail "${problems}but Python 3.10 to 3.13 with venv is needed: $remedy"
}

python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# What a .venv made now with the Python "$1" would be made for.
purpose() {
  printf '%s\n' "Python $(python_version "$1")" "place: $venv" "torch: $torch"
}

# A hash of the purpose and of the requirement files.
fingerprint() {
  "$1" - "$(purpose "$1")" "$requirements"/*.txt <<'PY'
import hashlib, pathlib, sys

parts = [sys.argv[1], *(pathlib.Path(name).read_text() for name in sys.argv[2:])]
print(hashlib.sha256(repr(parts).encode()).hexdigest())
PY
}

is_ready() {
  [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$1" 2>/dev/null)" ]
}

# Whether .venv has a working pip and was made here, for this torch choice and the Python version of "$1".
# One without a note of its purpose is somebody's own: it is used if its Python fits.
venv_fits() {
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
  if [ -f "$made_for" ]; then
    [ "$(cat "$made_for")" = "$(purpose "$1")" ]
  else
    [ "$(python_version "$venv/bin/python")" = "$(python_version "$1")" ]
  fi
}

# Prints the versions of torch and torchvision as Python "$1" imports them, or one line on what is wrong.
check_torch() {
  "$1" -W ignore - <<'PY' 2>&1 | tail -n 1
import re
import sys

try:
    import torch
except Exception as error:
    sys.exit(f"torch cannot be imported ({type(error).__name__}: {error})".splitlines()[0])
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:3])) < (2, 5, 1):
    sys.exit(f"torch {torch.__version__} is too old: 2.5.1 is the oldest that sam2 works with")
try:
    import torchvision
except ModuleNotFoundError:
    sys.exit(f"torch {torch.__version__} is there, but torchvision is not")
except Exception as error:
    sys.exit(f"torchvision does not belong to torch {torch.__version__} ({type(error).__name__})")
try:
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
except Exception:
    sys.exit(f"torchvision {torchvision.__version__} does not belong to torch {torch.__version__}")
device = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "no CUDA device in sight"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}")
PY
}

pip_install() {
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" ||
    fail "pip could not install this (its message is above); run the script again to carry on from here"
}

# Prints where the browser is that the test of the web page would take (utils/screenshot.py); fails if there is none.
find_browser() {
  local browser browsers=(chromium chromium-browser google-chrome)
  [ -z "${TEXTREGION_BROWSER:-}" ] || browsers=("$TEXTREGION_BROWSER")
  for browser in "${browsers[@]}"; do
    command -v "$browser" && return 0
  done
  return 1
}

may_install_browser() {
  [ -z "${TEXTREGION_BROWSER:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
}

install_browser() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium
} >/dev/null 2>&1 </dev/null

# Sees to a browser. That there is none is no failure: all but one test works without.
get_browser() {
  if [ "${TEXTREGION_BROWSER:-}" = none ]; then
    return 0
  elif ! find_browser >/dev/null && may_install_browser; then
    echo "      installing Debian's chromium"
    install_browser || true
  fi
  if found_browser=$(find_browser); then
    echo "      $found_browser"
    rm -f "$no_browser"
  else
    echo "      none, so the test of the web page will be skipped. To have it: install chromium (Debian: apt-get" \
      "install chromium), or set TEXTREGION_BROWSER to a Chrome's path"
    touch "$no_browser"
  fi
}

case "${1:-}" in
  "") ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) fail "does not know '$1'; see bash setup_env.sh --help" ;;
esac

if [ -z "${TEXTREGION_TORCH:-}" ] && [ -f "$made_for" ]; then
  TEXTREGION_TORCH=$(sed -n 's/^torch: //p' "$made_for")
fi
read -r -a torch_words <<<"${TEXTREGION_TORCH:-pinned}"
torch=${torch_words[*]:-pinned}
torch_remedy="set TEXTREGION_TORCH to a torch from 2.5.1 on and the torchvision of the same release (see --help)"
[ "$torch" != system ] || torch_remedy="set PYTHON to a Python that has both itself, not by a virtual environment"

python=$venv/bin/python
[ -z "${PYTHON:-}" ] || find_python
if is_ready "$python"; then
  if may_install_browser && [ ! -e "$no_browser" ] && ! find_browser >/dev/null; then
    get_browser
  fi
  echo "Nothing to do: $venv is up to date."
  exit 0
fi
[ -n "${PYTHON:-}" ] || find_python

# With .venv activated, python3 is the very thing about to be replaced: use the Python it was made from.
base=$("$python" -c 'import os, sys
if os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1]):
    print(sys._base_executable)' "$venv")
python=${base:-$python}

if [ "$torch" = system ]; then
  found=$(check_torch "$python") || fail "$python: $found; $torch_remedy"
  echo "Using what $python has: $found"
fi

if venv_fits "$python"; then
  say_step "Python $(python_version "$python"): using .venv, which is there"
else
  say_step "Python $(python_version "$python"): making .venv with $python"
  site=()
  [ "$torch" != system ] || site=(--system-site-packages)
  "$python" -m venv --clear ${site[@]+"${site[@]}"} "$venv" || fail "could not make $venv (the message is above)"
fi
rm -f "$stamp"
purpose "$venv/bin/python" >"$made_for"

say_step "build tools"
pip_install -r "$requirements/build.txt"

case "$torch" in
  system) say_step "torch: the system's (should pip name conflicts with other packages of the system: none is changed)" ;;
  pinned)
    say_step "torch and torchvision (up to 3 GB to fetch: some minutes)"
    # core.txt as a constraint: else this step takes the newest numpy and the next one replaces it.
    pip_install -r "$requirements/torch.txt" -c "$requirements/core.txt"
    ;;
  *)
    say_step "torch and torchvision: pip install $torch"
    pip_install "${torch_words[@]}"
    ;;
esac
found=$(check_torch "$venv/bin/python") || fail "$found; $torch_remedy"
echo "      $found"

say_step "libraries"
pip_install --no-build-isolation -r "$requirements/core.txt" -r "$requirements/web.txt" -r "$requirements/regionspot.txt"

say_step "sam2, mmsegmentation, lvis"
# SAM2_BUILD_CUDA=0: its CUDA extension only fills small holes in masks, and needs a CUDA compiler.
SAM2_BUILD_CUDA=0 pip_install --no-deps --no-build-isolation -r "$requirements/sam2.txt" -r "$requirements/mm.txt" \
  -r "$requirements/no_deps.txt"

say_step "tests and hooks"
pip_install -r "$requirements/dev.txt"

problem=$("$venv/bin/python" -W ignore -c '
import importlib
for name in "cv2 mmengine mmcv open_clip pycocotools.mask sam2 scipy skimage timm".split():
    try:
        importlib.import_module(name)
    except Exception as error:
        raise SystemExit(f"{name} cannot be imported ({type(error).__name__}: {error})")
' 2>&1) || fail "$(echo "$problem" | tail -n 1); delete $venv and run this script again"

say_step "a browser for the test of the web page"
get_browser

fingerprint "$venv/bin/python" >"$stamp"
echo "Ready after $SECONDS s: $venv (Python $(python_version "$venv/bin/python"), $found)"
