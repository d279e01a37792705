# shellcheck shell=bash disable=SC2154
# Sourced by jobs/quickstart.sh and tests/run.sh: packages, the release build, and Open MPI on one machine.
# Needs $root, the repository's top folder.

say() { printf '\n== %s\n' "$*"; }

# Installs those of the packages given that are missing; does nothing, and needs no network, where none is.
install_packages() {
  local missing=() name
  for name in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "missing packages: run as root: apt-get install --no-install-recommends ${missing[*]}" >&2
      return 1
    }
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -q &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

install_build_packages() {
  command -v dpkg-query >/dev/null || { echo "no dpkg here: taking the packages of .ci/packages.txt as given"; return 0; }
  local names
  mapfile -t names < <(sed 's/#.*//; /^[[:space:]]*$/d' "$root/.ci/packages.txt")
  install_packages "${names[@]}"
}

# build PRESET [TARGET...]: configures once, then builds. With CUDA where nvcc is, also if it is not in PATH.
build() {
  local preset=$1 options=()
  shift
  if ! command -v nvcc >/dev/null && [ -z "${CUDACXX:-}" ] && [ -x /usr/local/cuda/bin/nvcc ]; then
    export CUDACXX=/usr/local/cuda/bin/nvcc
  fi
  command -v ccache >/dev/null && options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  if [ ! -f "$root/build/$preset/build.ninja" ]; then
    (cd "$root" && cmake --preset "$preset" "${options[@]}") || return 1
  fi
  cmake --build "$root/build/$preset" ${@:+--target "$@"}
}

# More ranks than cores, unbound, and as root in containers: what a laptop or a CI machine needs, not a cluster.
use_one_machine_mpi() {
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
  export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
  export OMPI_MCA_btl_vader_single_copy_mechanism=none # containers refuse the system call behind the default
}
