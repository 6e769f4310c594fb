#!/usr/bin/env bash
# Makes the Python environment .venv next to this file. `bash setup_env.sh --help` tells more.
set -euo pipefail

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$here/.venv
requirements=$here/configs/requirements
made_for=$venv/textregion-made-for # written when .venv is made: Python version, place, torch choice
wanted=$venv/textregion-layers     # the layers that were ever asked for, kept up to date from then on
stamp=$venv/textregion-stamp       # a line for each layer that is installed: a hash of `made_for` and its requirements
no_browser=$venv/textregion-no-browser # written when a browser could not be installed: not to be tried on every run

usage() {
  cat <<'HELP'
usage: bash setup_env.sh [--web] [--search] [--cluster] [--geo] [--eval] [--transformers] [--tests] [--help]

Makes the Python environment .venv next to this script and installs the exact versions of
configs/requirements/*.txt into it, with the program .venv/bin/textregion. Needs Python 3.11 to 3.14
with its venv module, the package registry your pip is set up for, and about 6 GB of disk (1 GB with a
CPU-only torch). No root.

Without a flag: what the library and its demo need. A flag adds a layer, which later runs keep:
  --web     the page in the browser (gradio)
  --search  the region index: textregion index, textregion search (lancedb)
  --cluster the same, and folders, on many machines: --engine ray (ray)
  --geo     coordinates of GeoTIFFs in --export geojson (rasterio)
  --eval    benchmarks and tasks (mmsegmentation, lvis), SLIC masks, RegionSpot's training and SAM v1
  --transformers  mask sources sam2-hf, sam3, eomt; sam3-concepts (transformers)
  --tests   all of them, and pytest, ruff, pyright, …

One test drives a Chromium or Chrome. Where there is none, it is skipped, and --tests says how to get one.
Only in CI (CI=true) and as root does it get Debian's package chromium by itself, through apt-get.

Run it again at any time: it returns at once when nothing has changed, installs what has changed
otherwise, and carries on after an interrupted run.

Environment variables:
  PYTHON            the Python to use, a command or a path. Unset: the first that fits of python3,
                    python3.11, python3.12, python3.13, python3.14.
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
steps=1
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
  elif ! "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; then
    echo "is Python $(python_version "$1")"
  elif ! "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    echo "has no venv module"
  fi
}

# Sets `python`, to the first candidate without a problem.
find_python() {
  local problem problems="" remedy
  local candidates=(python3 python3.11 python3.12 python3.13 python3.14)
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
  fail "${problems}but Python 3.11 to 3.14 with venv is needed: $remedy"
}

python_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# What a .venv made now with the Python "$1" would be made for.
purpose() {
  printf '%s\n' "Python $(python_version "$1")" "place: $venv" "torch: $torch"
}

# Adds a layer to `layers`, once.
add_layer() {
  case " ${layers[*]} " in
    *" $1 "*) ;;
    *) layers+=("$1") ;;
  esac
}

# The requirement files of a layer.
files_of() {
  case "$1" in
    base) echo "build.txt torch.txt core.txt sam2.txt" ;;
    web) echo "web.txt" ;;
    search) echo "search.txt" ;;
    cluster) echo "cluster.txt" ;;
    geo) echo "geo.txt" ;;
    eval) echo "eval.txt eval_no_deps.txt" ;;
    transformers) echo "transformers.txt" ;;
    tests) echo "dev.txt" ;;
  esac
}

# The lines of the stamp for layers, as the Python "$1" would install them: a layer's name and a hash of the purpose,
# of its requirement files and, for base, of what pyproject.toml says of the package (not of what it says to tools).
stamp_lines() {
  local layer file words=()
  for layer in "${@:2}"; do
    words+=("$layer")
    for file in $(files_of "$layer"); do words+=("$requirements/$file"); done
    [ "$layer" != base ] || words+=("$here/pyproject.toml")
  done
  "$1" - "$venv" "$torch" "${words[@]}" <<'PY'
import hashlib, pathlib, sys

place, torch, *words = sys.argv[1:]
hashes = {}
for word in words:
    if "/" not in word:
        layer, texts = word, [*sys.version_info[:2], place, torch]
    else:
        texts.append(pathlib.Path(word).read_text(encoding="utf-8").partition("\n[tool.")[0])
    hashes[layer] = hashlib.sha256(repr(texts).encode()).hexdigest()
print(*(f"{layer} {digest}" for layer, digest in hashes.items()), sep="\n")
PY
}

# Sets `missing`, to the layers that are not installed as they should be.
find_missing() {
  local layer lines=""
  [ ! -x "$venv/bin/python" ] || [ ! -f "$stamp" ] || lines=$(stamp_lines "$1" "${layers[@]}" 2>/dev/null) || true
  missing=()
  for layer in "${layers[@]}"; do
    grep -qxF "$(grep "^$layer " <<<"$lines" || true)" "$stamp" 2>/dev/null || missing+=("$layer")
  done
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
  # --no-compile: `compile_all` does it on all cores.
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --no-compile "$@" ||
    fail "pip could not install this (its message is above); run the script again to carry on from here"
}

# Compiles what is new among the installed modules. Some packages bring files of other Pythons: those do not matter.
compile_all() {
  "$venv/bin/python" -W ignore -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
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
  [ "${CI:-}" = true ] && [ -z "${TEXTREGION_BROWSER:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
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

# Stops if one of the modules cannot be imported.
check_imports() {
  local problem
  problem=$("$venv/bin/python" -W ignore -c '
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise SystemExit(f"{name} cannot be imported ({type(error).__name__}: {error})")
' "$@" 2>&1) || fail "$(echo "$problem" | tail -n 1); delete $venv and run this script again"
}

install_base() {
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
  pip_install --no-build-isolation -r "$requirements/core.txt"

  say_step "sam2, textregion"
  # SAM2_BUILD_CUDA=0: its CUDA extension only fills small holes in masks, and needs a CUDA compiler.
  SAM2_BUILD_CUDA=0 pip_install --no-deps --no-build-isolation -r "$requirements/sam2.txt"
  (cd -- "$here" && pip_install --no-deps --no-build-isolation -e .) || exit # by its path pip takes [ ] for extras
  check_imports cv2 open_clip pycocotools.mask sam2 scipy timm
}

install_web() {
  say_step "the web page: gradio"
  pip_install -r "$requirements/web.txt" -c "$requirements/core.txt"
}

install_search() {
  say_step "the region index: lancedb"
  pip_install -r "$requirements/search.txt" -c "$requirements/core.txt"
}

install_cluster() {
  say_step "many machines: ray"
  pip_install -r "$requirements/cluster.txt" -c "$requirements/core.txt"
}

install_geo() {
  say_step "GeoTIFFs: rasterio"
  pip_install -r "$requirements/geo.txt" -c "$requirements/core.txt"
}

install_eval() {
  say_step "benchmarks and tasks: mmsegmentation, lvis, SAM v1"
  pip_install -r "$requirements/eval.txt" -c "$requirements/core.txt"
  pip_install --no-deps -r "$requirements/eval_no_deps.txt"
  check_imports mmengine mmcv skimage
}

install_transformers() {
  say_step "mask sources of transformers"
  pip_install -r "$requirements/transformers.txt" -c "$requirements/core.txt"
}

install_tests() {
  say_step "tests and checks"
  pip_install -r "$requirements/dev.txt" -c "$requirements/core.txt"
  say_step "a browser for the test of the web page"
  get_browser
}

layers=(base)
[ ! -f "$wanted" ] || for layer in $(cat "$wanted"); do add_layer "$layer"; done
for flag in "$@"; do
  case "$flag" in
    -h | --help)
      usage
      exit 0
      ;;
    --web | --search | --cluster | --geo | --eval | --transformers) add_layer "${flag#--}" ;;
    --tests) for layer in web search cluster geo eval transformers tests; do add_layer "$layer"; done ;;
    *) fail "does not know '$flag'; see bash setup_env.sh --help" ;;
  esac
done

case "$here" in
  *:*) fail "the folder $here has a colon in its name, with which no .venv can be made: rename it" ;;
  *[\"\$\`]*) echo "Note: with a \", \$ or \` in the folder's name, of .venv/bin only python runs: .venv/bin/python -m NAME" ;;
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
find_missing "$python"
if [ ${#missing[@]} = 0 ]; then
  case " ${layers[*]} " in
    *" tests "*) if may_install_browser && [ ! -e "$no_browser" ] && ! find_browser >/dev/null; then get_browser; fi ;;
  esac
  echo "Nothing to do: $venv is up to date."
  exit 0
fi
[ -n "${PYTHON:-}" ] || find_python

# With .venv activated, python3 is the very thing about to be replaced: use the Python it was made from.
base=$("$python" -c 'import os, sys
if os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1]):
    print(sys._base_executable)' "$venv")
python=${base:-$python}

found=
if [ "$torch" = system ]; then
  found=$(check_torch "$python") || fail "$python: $found; $torch_remedy"
  echo "Using what $python has: $found"
fi

fits=no
if venv_fits "$python"; then
  fits=yes
  find_missing "$venv/bin/python"
  making="using .venv, which is there"
else
  missing=("${layers[@]}")
  making="making .venv with $python"
fi
for layer in "${missing[@]}"; do
  case "$layer" in
    base) steps=$((steps + 4)) ;;
    tests) steps=$((steps + 2)) ;;
    *) steps=$((steps + 1)) ;;
  esac
done

say_step "Python $(python_version "$python"): $making"
if [ $fits = no ]; then
  site=()
  [ "$torch" != system ] || site=(--system-site-packages)
  "$python" -m venv --clear ${site[@]+"${site[@]}"} "$venv" || fail "could not make $venv (the message is above)"
fi
purpose "$venv/bin/python" >"$made_for"
echo "${layers[*]}" >"$wanted"

for layer in "${missing[@]}"; do
  { [ ! -f "$stamp" ] || sed "/^$layer /d" "$stamp"; } >"$stamp.new"
  mv "$stamp.new" "$stamp"
  "install_$layer"
  stamp_lines "$venv/bin/python" "$layer" >>"$stamp"
  [ "$layer" != base ] || compile_all & # most of it, while pip fetches the other layers
done
wait
compile_all
echo "Ready after $SECONDS s: $venv (Python $(python_version "$venv/bin/python")${found:+, $found})"
