# What the conformance runners share. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Where tools are installed: beside the build, so that `cargo clean` takes them along.
TOOLS=${CONFORMANCE_TOOLS:-${CARGO_TARGET_DIR:-$ROOT/target}/tools}

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# The suites, by crate, in the versions whose results are known.
declare -A VERSIONS=([pjdfstest]=0.2.2 [fsx]=0.3.2)

# tool NAME  makes sure that the binary of a suite is there; prints its path
tool() {
    local version=${VERSIONS[$1]}
    local root=$TOOLS/$1-$version
    if [ ! -x "$root/bin/$1" ]; then
        echo "installing $1 $version" >&2
        env -u CARGO_TARGET_DIR cargo install --locked --quiet --root "$root" --version "$version" "$1" >&2 ||
            die "cargo install $1 $version failed"
    fi
    echo "$root/bin/$1"
}
