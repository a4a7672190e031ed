# What the conformance runners share. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Where tools are installed: beside the build, so that `cargo clean` takes them along.
TOOLS=${CONFORMANCE_TOOLS:-${CARGO_TARGET_DIR:-$ROOT/target}/tools}

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# tool NAME VERSION  makes sure that exactly this version of a crate's binary is there; prints its path
tool() {
    local root=$TOOLS/$1-$2
    if [ ! -x "$root/bin/$1" ]; then
        echo "installing $1 $2" >&2
        env -u CARGO_TARGET_DIR cargo install --locked --quiet --root "$root" --version "$2" "$1" >&2 ||
            die "cargo install $1 $2 failed"
    fi
    echo "$root/bin/$1"
}
