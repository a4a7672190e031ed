# What scripts/up and scripts/test share. Sourced, not run.

# Runs a command as root, through sudo where needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

need_rust() {
    command -v cargo >/dev/null || {
        echo "cargo was not found; install a Rust toolchain from https://rustup.rs first" >&2
        exit 1
    }
}

# need_packages COMMAND:PACKAGE...  installs the Debian packages whose command is missing
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || {
        echo "please install: ${missing[*]} (no apt-get on this machine)" >&2
        exit 1
    }
    echo "installing ${missing[*]}" >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
